"""Pure mathematics on norms of shape (..., groups): no module, no device file, no I/O."""

from __future__ import annotations

from collections.abc import Callable

from hwprune.errors import InputError
from hwprune.penalties.base import (
    Penalty,
    PenaltySettings,
    ProjectingPenalty,
    RootedPenalty,
    Solution,
    StatefulPenalty,
    StraightThroughPenalty,
)
from hwprune.penalties.envelope import GroupEnvelope
from hwprune.penalties.group_lasso import GroupLasso, soft_threshold
from hwprune.penalties.half_space import HalfSpace, half_space_mask
from hwprune.penalties.halo import Halo, ProfiledHalo, TrainedHalo
from hwprune.penalties.magnitude import HardThreshold, Magnitude, strongest
from hwprune.penalties.n_m import StraightThrough, nm_mask, sr_ste_gradient

__all__ = [
    "GroupEnvelope",
    "GroupLasso",
    "HalfSpace",
    "Halo",
    "HardThreshold",
    "Magnitude",
    "Penalty",
    "PenaltySettings",
    "ProfiledHalo",
    "ProjectingPenalty",
    "RootedPenalty",
    "Solution",
    "StatefulPenalty",
    "StraightThrough",
    "StraightThroughPenalty",
    "TrainedHalo",
    "half_space_mask",
    "make_penalty",
    "nm_mask",
    "penalty_names",
    "soft_threshold",
    "sr_ste_gradient",
    "strongest",
]

#: What the command line calls a penalty, and how it is made.
REGISTRY: dict[str, Callable[[PenaltySettings], Penalty]] = {
    "envelope": lambda given: GroupEnvelope(given.budget, given.ridge, given.cost, debias=True),
    "wgsef": lambda given: GroupEnvelope(given.budget, given.ridge, given.cost, debias=False),
    "halo": lambda given: TrainedHalo(),
    "profiled-halo": lambda given: ProfiledHalo(),
    "group-lasso": lambda given: GroupLasso(),
    "l1": lambda given: GroupLasso("l1"),
    "half-space": lambda given: HalfSpace(),
    "magnitude": lambda given: Magnitude(),
    "hard-threshold": lambda given: HardThreshold(given.budget, given.cost),
    "sr-ste": lambda given: StraightThrough(given.budget, given.cost),
}

#: Penalties of single weights: on a group of several they are no functions of its norm, or mask nothing else.
_SINGLES_ONLY = ("l1", "sr-ste")


def penalty_names(*, singles: bool = True) -> tuple[str, ...]:
    """The names that :func:`make_penalty` knows.

    Args:
        singles: Whether groups are single weights; groups of several do not have every penalty.
    """
    return tuple(name for name in REGISTRY if singles or name not in _SINGLES_ONLY)


def make_penalty(name: str, settings: PenaltySettings | None = None, *, singles: bool = True) -> Penalty:
    """The penalty of that name.

    Args:
        name: One of :func:`penalty_names`.
        settings: What it is made from; by default the budget is open and every weight is 1.
        singles: Whether groups are single weights.

    Raises:
        InputError: If there is none of that name, or the settings are out of range.

    >>> make_penalty("envelope", PenaltySettings(budget=1)).name
    'envelope'
    """
    names = penalty_names(singles=singles)
    if name not in names:
        of_weights = name in REGISTRY
        raise InputError(
            f"{name} is a penalty of single weights" if of_weights else "unknown penalty",
            expected=f"one of {', '.join(names)}",
            got=name,
            hint="prune single weights or blocks of them with it: granularity weight or block"
            if of_weights
            else None,
        )
    return REGISTRY[name](settings or PenaltySettings())
