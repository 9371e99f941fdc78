"""What groups cost and what may be spent: budgets in microseconds or in groups.

A budget prices every axis at its current width and says how much is still too much. The envelope works on
that linearisation, refreshed as groups die; :mod:`hwprune.groups.least_loss` then settles the rest exactly,
on the budget's own terms instead of the linearised ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from hwprune.errors import TargetError

Widths = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

#: Steps of an axis looked ahead on the latency staircase, so that a step that frees nothing follows the
#: step behind it that does.
LOOK_AHEAD = 4
#: Smallest cost of a group as a fraction of the mean: a cost of zero would never let a group leave.
COST_FLOOR = 1e-3
#: The part of a latency target left free in predictions, so that measurements do not miss it.
MARGIN = 0.03
#: Axes that are empty when one of them is: sets of their indices.
Together = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """The budget linearised at one width vector.

    Attributes:
        per_axis: Shape ``(axes,)``: what the next group of each axis costs; positive.
        excess: By how much the network is over its budget, in the unit of the costs; negative where it
            is under.
    """

    per_axis: FloatArray
    excess: float


class Budget(Protocol):
    """What a network may cost."""

    def used(self, widths: Widths) -> FloatArray:
        """Cost of whole networks: widths of shape ``(..., axes)`` to shape ``(...)``."""
        ...

    @property
    def limit(self) -> float:
        """The cost not to be exceeded."""
        ...

    def with_limit(self, limit: float) -> Self:
        """The same budget with another limit."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LatencyBudget:
    """A budget in microseconds, priced by a latency predictor.

    Attributes:
        predict_us: Widths of shape ``(..., axes)`` to predicted latencies of shape ``(...)``.
        limit: The latency not to be exceeded, in microseconds.
    """

    predict_us: Callable[[Widths], FloatArray]
    limit: float

    def used(self, widths: Widths) -> FloatArray:
        """Predicted latency in microseconds."""
        return np.asarray(self.predict_us(widths), dtype=np.float64)

    def with_limit(self, limit: float) -> Self:
        """The same budget with another limit."""
        return replace(self, limit=limit)


@dataclass(frozen=True, slots=True, eq=False)
class CountBudget:
    """A budget in groups.

    Attributes:
        aligns: Shape ``(axes,)``: members per group.
        limit: The number of groups not to be exceeded.
        together: Axes that are empty when one of them is.
    """

    aligns: Widths
    limit: float
    together: Together = ()

    def used(self, widths: Widths) -> FloatArray:
        """Number of groups."""
        left = emptied(widths, self.together)
        return np.asarray(np.ceil(left / self.aligns).sum(axis=-1), dtype=np.float64)

    def with_limit(self, limit: float) -> Self:
        """The same budget with another limit."""
        return replace(self, limit=limit)


def emptied(widths: Widths, together: Together) -> Widths:
    """Widths with all axes of a set at zero where one of them is.

    Args:
        widths: Shape ``(..., axes)``.
        together: The sets.

    >>> emptied(np.array([[8, 0, 4], [8, 8, 0]]), [(0, 1)])
    array([[0, 0, 4],
           [8, 8, 0]])
    """
    result = widths.copy() if together else widths
    for axes in together:
        places = list(axes)
        result[..., places] *= (widths[..., places] > 0).all(axis=-1, keepdims=True)
    return result


def narrowest(fewest: Widths) -> str:
    """What is left of a network at the fewest groups, in words.

    Args:
        fewest: Shape ``(axes,)``: groups that every axis keeps, 0 or 1.
    """
    if fewest.all():
        return "one group per axis"
    if not fewest.any():
        return "nothing but what must stay"
    return "one group per axis, without the branches that may leave"


def narrower(widths: Widths, aligns: Widths, steps: int, fewest: Widths | int = 1) -> Widths:
    """Every axis narrowed alone by ``steps`` groups, shape ``(axes, axes)``, never below ``fewest`` groups.

    The weakest group of a width that is no multiple of the alignment is the smaller one.

    >>> narrower(np.array([20, 16]), np.array([8, 8]), 1)
    array([[16, 16],
           [20,  8]])
    """
    groups = np.maximum(np.ceil(widths / aligns).astype(np.int64) - steps, fewest)
    result = np.tile(widths, (widths.size, 1))
    np.fill_diagonal(result, np.minimum(groups * aligns, widths))
    return result


def price(budget: Budget, widths: Widths, aligns: Widths, fewest: Widths | int = 1) -> Prices:
    """Linearises ``budget`` at ``widths``.

    The price of an axis is the best mean saving per group over the next :data:`LOOK_AHEAD` groups, with
    the producers' outputs and the consumers' inputs made narrower together.

    Args:
        budget: The budget.
        widths: Shape ``(axes,)``.
        aligns: Shape ``(axes,)``: members per group.
        fewest: Groups that every axis keeps.
    """
    used = float(budget.used(widths))
    savings = used - budget.used(
        np.stack([narrower(widths, aligns, steps, fewest) for steps in range(1, LOOK_AHEAD + 1)])
    )
    per_group = (savings / np.arange(1, LOOK_AHEAD + 1)[:, None]).max(axis=0)
    floor = COST_FLOOR * max(float(np.abs(per_group).mean()), np.finfo(np.float64).tiny)
    return Prices(np.maximum(per_group, floor), used - budget.limit)


def smallest(aligns: Widths, widths: Widths, fewest: Widths | int = 1) -> Widths:
    """The narrowest widths that groups allow: ``fewest`` groups per axis."""
    return np.minimum(fewest * aligns, widths)


def limit_within_reach(allowed_us: float, dense_us: float, least_us: float, narrowest: str) -> float:
    """The predicted latency to aim at: what is allowed, less the margin where the network has to be faster.

    Args:
        allowed_us: The latency allowed, in microseconds.
        dense_us: Predicted latency of the dense network.
        least_us: Predicted latency of the smallest network there can be.
        narrowest: What that is, in words.

    Raises:
        TargetError: If that is out of reach; the message gives what can be asked for.

    >>> limit_within_reach(50.0, 100.0, 48.5, "one group per axis")
    48.5
    """
    limit = allowed_us * (1 - MARGIN) if allowed_us < dense_us else allowed_us
    if least_us > limit * (1 + 1e-9):  # a target that the message below gave may be off by the last bit
        raise out_of_reach(allowed_us, dense_us, least_us, f"predicted for {narrowest}", MARGIN)
    return max(limit, least_us)


def out_of_reach(
    allowed_us: float, dense_us: float, least_us: float, source: str, spare: float
) -> TargetError:
    """The error for a latency that even the smallest network exceeds.

    Args:
        allowed_us: The latency asked for, in microseconds.
        dense_us: The dense network's.
        least_us: The smallest network's.
        source: Where these two come from, in words.
        spare: The part of a target that must be free.
    """
    in_reach = min(least_us / (1 - spare), dense_us)
    latency, factor = math.ceil(in_reach * 10) / 10, math.floor(dense_us / in_reach * 100) / 100
    return TargetError(
        "the target cannot be met by pruning this network on this device",
        expected=f"at least {latency:.1f} us, {factor:.2f} times faster than dense "
        f"({source}, with {spare:.0%} to spare)",
        got=f"{allowed_us:.1f} us, {dense_us / allowed_us:.2f} times faster",
        hint="ask for less, prune something else, or start from another network",
    )


def check_count(budget: CountBudget, aligns: Widths, dense: Widths, fewest: Widths | int = 1) -> None:
    """Raises :class:`TargetError` where even the narrowest network has more groups than the budget."""
    least, whole = int(budget.used(smallest(aligns, dense, fewest))), int(budget.used(dense))
    if least > budget.limit:
        fraction, left = math.ceil(least / whole * 1000) / 1000, narrowest(np.asarray(fewest))
        raise TargetError(
            "so few groups cannot be kept of this network",
            expected=f"at least {least} of {whole} groups, a fraction of {fraction:g} ({left})",
            got=f"{budget.limit:.0f} groups",
            hint="keep more, or start from another network",
        )
