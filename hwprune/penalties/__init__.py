"""Pure mathematics on norms of shape (..., groups): no module, no device file, no I/O."""

from __future__ import annotations

from collections.abc import Callable

from hwprune.errors import InputError
from hwprune.penalties.base import Penalty, PenaltySettings
from hwprune.penalties.envelope import GroupEnvelope, Solution
from hwprune.penalties.group_lasso import GroupLasso, soft_threshold
from hwprune.penalties.half_space import half_space_mask
from hwprune.penalties.halo import Halo, ProfiledHalo
from hwprune.penalties.magnitude import HardThreshold, Magnitude, strongest
from hwprune.penalties.n_m import nm_mask, sr_ste_gradient

__all__ = [
    "GroupEnvelope",
    "GroupLasso",
    "Halo",
    "HardThreshold",
    "Magnitude",
    "Penalty",
    "PenaltySettings",
    "ProfiledHalo",
    "Solution",
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
    "halo": lambda given: ProfiledHalo(),
    "group-lasso": lambda given: GroupLasso(),
    "magnitude": lambda given: Magnitude(),
    "hard-threshold": lambda given: HardThreshold(given.budget, given.cost),
}


def penalty_names() -> tuple[str, ...]:
    """The names that :func:`make_penalty` knows."""
    return tuple(REGISTRY)


def make_penalty(name: str, settings: PenaltySettings | None = None) -> Penalty:
    """The penalty of that name.

    Args:
        name: One of :func:`penalty_names`.
        settings: What it is made from; by default the budget is open and every weight is 1.

    Raises:
        InputError: If there is none of that name, or the settings are out of range.

    >>> make_penalty("envelope", PenaltySettings(budget=1)).name
    'envelope'
    """
    if name not in REGISTRY:
        raise InputError("unknown penalty", expected=f"one of {', '.join(REGISTRY)}", got=name)
    return REGISTRY[name](settings or PenaltySettings())
