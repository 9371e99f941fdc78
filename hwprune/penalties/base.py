"""What every penalty offers, and the checks that all of them make."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hwprune.errors import InputError

#: Sums of costs that exceed the budget by this much of it, by rounding alone, still fit.
COST_ROUNDING = 1e-12
#: Types that norms may have.
_NORM_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Penalty(Protocol):
    """A function of the norms of groups with a proximal operator that scales groups.

    Norms have shape ``(..., groups)``: every row along the last dimension is a penalty of its own. The
    proximal operator of a function of norms scales every group,

        argmin_x 1/2 |x - w|^2 + L penalty(x)  =  (f_1 w_1, ..., f_m w_m),    0 <= f_j <= 1,

    so that the factors are all that a penalty has to give.
    """

    @property
    def name(self) -> str:
        """What the command line calls it."""
        ...

    @property
    def strength_scale(self) -> float:
        """Factor on the schedule's strength that suits shares of a layer's norm."""
        ...

    def value(self, norms: Tensor) -> Tensor:
        """The penalty, shape ``(...)``."""
        ...

    def prox_factors(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        """What the proximal operator multiplies each group by, shape ``(..., groups)``, in [0, 1].

        A strength of 0 leaves everything as it is. A tensor holds one strength for all rows, or one per
        row, shape ``(...)``.
        """
        ...

    def replace_budget(self, budget: float | Tensor, cost: Tensor | None) -> Self:
        """The same penalty with another budget and costs; itself where it knows none."""
        ...


@runtime_checkable
class StatefulPenalty(Penalty, Protocol):
    """A penalty with numbers of its own for every group that are trained along with the network.

    The penalty stays a function; whoever calls it holds the state, saves it and gives it back. Every tensor
    of a state has the shape of the norms.
    """

    def start(self, norms: Tensor) -> dict[str, Tensor]:
        """The state to begin with, by name."""
        ...

    def advance(
        self, norms: Tensor, strength: float, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One step: the factors that the present state gives, and the state after it.

        Args:
            norms: Shape ``(..., groups)``.
            strength: Not negative.
            state: By the names of :meth:`start`.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A proximal step.

    Attributes:
        factors: Shape ``(..., groups)``: what each group is multiplied by.
        root: Shape ``(..., 1)``, float64: the solution of the budget equation, to start the next step from.
    """

    factors: Tensor
    root: Tensor


@runtime_checkable
class RootedPenalty(Penalty, Protocol):
    """A penalty whose proximal operator solves an equation, the sooner the better it is told where."""

    def solve(
        self,
        norms: Tensor,
        strength: float | Tensor,
        start: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Solution:
        """The factors of :meth:`prox_factors` with the root that they came from.

        Args:
            norms: Shape ``(..., groups)``.
            strength: As there.
            start: Root of an earlier step, shape ``(..., 1)``.
            out: Where the factors are written; the norms themselves will do.
        """
        ...


@runtime_checkable
class ProjectingPenalty(Penalty, Protocol):
    """A penalty that also zeroes groups by where a step has taken them, after its proximal operator."""

    def stays(self, products: Tensor, squares: Tensor) -> Tensor:
        """The groups that are not projected to zero, boolean, shape ``(..., groups)``.

        Args:
            products: ``<x_j, w_j>`` of the groups after and before the step, shape ``(..., groups)``.
            squares: ``|w_j|^2``, same shape.
        """
        ...


@runtime_checkable
class StraightThroughPenalty(Penalty, Protocol):
    """A penalty whose zeros cover weights that are trained on and may come back until survivors are fixed."""

    @property
    def covered_decay(self) -> float:
        """What covered weights lose per step, as a multiple of the learning rate."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PenaltySettings:
    """What penalties are made from; each takes what it knows.

    Attributes:
        budget: Groups, or the sum of their costs, that may stay.
        cost: Shape ``(groups,)``; ``None`` for ones.
        ridge: Shape ``(groups,)``; ``None`` for ones. Only the envelopes know one. Training uses
            none: its groups are bundled anew, into other numbers of them.
    """

    budget: float | Tensor = float("inf")
    cost: Tensor | None = None
    ridge: Tensor | None = None


def check_norms(norms: Tensor) -> float:
    """Refuses norms that are none.

    Args:
        norms: Any shape but a scalar's.

    Returns:
        The greatest norm, 0 where there is none.

    Raises:
        InputError: Unless all norms are finite, not negative and of a floating type.
    """
    check_norm_type(norms)
    if not norms.numel():
        return 0.0
    return check_extremes(*torch.aminmax(norms.detach()))


def check_norm_type(norms: Tensor) -> None:
    """:func:`check_norms` as far as the norms need not be read for it."""
    if not isinstance(norms, Tensor):
        raise InputError("norms must be a tensor", expected="a torch.Tensor", got=type(norms).__name__)
    if norms.dtype not in _NORM_TYPES:
        raise InputError("norms must be floating-point", expected="float32 or float64", got=norms.dtype)
    if norms.ndim == 0:
        raise InputError("norms have no groups", expected="shape (..., groups)", got="a scalar")


def check_extremes(smallest: Tensor, largest: Tensor) -> float:
    """Refuses norms by their least and their greatest, scalars as ``torch.aminmax`` returns them.

    Returns:
        The greatest norm.

    Raises:
        InputError: Unless both are finite and not negative.
    """
    # NaN passes through both extremes and fails both comparisons.
    least, greatest = float(smallest), float(largest)
    if not (least >= 0 and greatest < float("inf")):
        raise InputError(
            "norms must be finite and not negative",
            expected="every norm in [0, inf)",
            got=f"norms from {least} to {greatest}",
            hint="a loss that is not finite usually causes this: lower the learning rate",
        )
    return greatest


def only_number(given: float | Tensor) -> float | None:
    """The number, or the only one of a tensor; ``None`` where a tensor holds several or none.

    >>> only_number(torch.tensor([2.0])), only_number(torch.ones(2))
    (2.0, None)
    """
    if isinstance(given, Tensor):
        return float(given) if given.numel() == 1 else None
    return float(given)


def check_number(name: str, given: float | Tensor, where: str | None = None) -> None:
    """Raises :class:`InputError` unless it is a real number that a float holds, or a tensor of such."""
    usable = isinstance(given, Real) or (isinstance(given, Tensor) and not given.is_complex())
    if usable and not isinstance(given, Tensor):
        try:
            float(given)
        except OverflowError:
            usable = False
    if not usable:
        raise InputError(
            f"the {name} must be a number or a tensor",
            where=where,
            expected="a real number within the range of a float, or a torch.Tensor of such",
            got=given if isinstance(given, Tensor) else type(given).__name__,
        )


def check_strength(strength: float | Tensor) -> None:
    """Raises :class:`InputError` unless every strength is finite and not negative."""
    check_number("strength", strength)
    number = only_number(strength)
    if number is None:
        values = torch.as_tensor(strength)
        usable = bool(((values >= 0) & torch.isfinite(values)).all())
    else:
        usable = 0 <= number < math.inf
    if not usable:
        raise InputError("the strength must be finite and not negative", expected="[0, inf)", got=strength)


def per_row(strength: float | Tensor, norms: Tensor) -> Tensor:
    """The strength as a tensor that broadcasts against norms of shape ``(..., groups)``.

    >>> per_row(torch.tensor([1.0, 2.0]), torch.ones(2, 3)).shape
    torch.Size([2, 1])
    """
    check_strength(strength)
    return in_rows("strength", strength, norms).to(norms.dtype).unsqueeze(-1)


def in_rows(name: str, given: float | Tensor, norms: Tensor) -> Tensor:
    """One number per row in double precision, shape ``(...)``; a view where it is the same for all.

    Args:
        name: What it is, for the message.
        given: A number, or a tensor with one for all rows or one per row, shape ``(...)``.
        norms: Shape ``(..., groups)``.

    Raises:
        InputError: If it does not fit the norms.

    >>> in_rows("budget", 2.0, torch.ones(3, 4))
    tensor([2., 2., 2.], dtype=torch.float64)
    """
    values, rows = _as_double(given).to(norms.device), norms.shape[:-1]
    values = values.reshape(()) if values.numel() == 1 else values
    sizes = zip(reversed(values.shape), reversed(rows), strict=False)
    if values.ndim > len(rows) or any(size not in (1, row) for size, row in sizes):
        raise InputError(
            f"the {name} does not fit the norms",
            expected=f"a number, or a tensor of shape {tuple(rows)}",
            got=f"shape {tuple(values.shape)}",
        )
    return values.expand(rows)


def _as_double(given: float | Tensor) -> Tensor:
    """A number, or a tensor without its history, in double precision."""
    if isinstance(given, Tensor):
        return given.detach().double()
    return torch.tensor(float(given), dtype=torch.float64)


def check_positive(name: str, weights: Tensor | None, where: str) -> None:
    """Raises :class:`InputError` unless all weights are positive, finite and along one dimension."""
    if weights is None:
        return
    if not isinstance(weights, Tensor):
        raise InputError(
            f"the {name} must be a tensor",
            where=where,
            expected="shape (groups,)",
            got=type(weights).__name__,
        )
    if weights.ndim != 1:
        raise InputError(
            f"the {name} must be one number per group",
            where=where,
            expected="shape (groups,)",
            got=tuple(weights.shape),
        )
    if weights.is_complex() or not bool((torch.isfinite(weights) & (weights > 0)).all()):
        raise InputError(f"every {name} must be positive and finite", where=where, got=weights)


def check_budget(budget: float | Tensor, where: str) -> None:
    """Raises :class:`InputError` where a budget is negative or no number; infinity is allowed."""
    check_number("budget", budget, where)
    if not bool((_as_double(budget) >= 0).all()):
        raise InputError("the budget must not be negative", where=where, expected=">= 0", got=budget)


def whole_budget(budget: Tensor) -> Tensor:
    """A budget of groups that is a whole number but for rounding, such as 0.57 * 100, as that number.

    Args:
        budget: Any shape, float64; may be infinite.

    >>> whole_budget(torch.tensor([0.57 * 100, 2.5], dtype=torch.float64))
    tensor([57.0000,  2.5000], dtype=torch.float64)
    """
    near = budget.round()
    return torch.where((budget - near).abs() <= COST_ROUNDING * near, near, budget)


def whole_number(budget: float) -> float:
    """:func:`whole_budget` of one number; a tensor of it would be felt in a training step.

    >>> whole_number(0.57 * 100), whole_number(2.5), whole_number(float("inf"))
    (57.0, 2.5, inf)
    """
    near = float(np.rint(budget))
    return near if abs(budget - near) <= COST_ROUNDING * near else budget


def fitted(name: str, weights: Tensor | None, norms: Tensor) -> Tensor:
    """Weights per group in double precision, shape ``(groups or 1,)``.

    Args:
        name: What they are, for the message.
        weights: Shape ``(groups,)``; ``None`` for ones.
        norms: Shape ``(..., groups)``.

    Raises:
        InputError: If they do not fit the norms.
    """
    if weights is None:
        return torch.ones(1, dtype=torch.float64, device=norms.device)
    if weights.shape[0] != norms.shape[-1]:
        raise InputError(
            f"the {name} does not fit the norms",
            expected=f"{norms.shape[-1]} groups",
            got=f"{weights.shape[0]}",
        )
    return weights.detach().to(device=norms.device, dtype=torch.float64)
