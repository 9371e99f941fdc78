"""Chooses widths within a budget so that as little as possible is lost: greedily, then by exchange."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwprune.errors import TargetError
from hwprune.groups.costs import COST_FLOOR, LOOK_AHEAD, Budget, FloatArray, Widths, narrower

#: Groups that an axis gains or loses in an exchange, at most.
EXCHANGED = 2
#: Exchanges that a budget is asked about in a round, the most promising first.
MOST_ASKED, ASKED_AT_ONCE = 2048, 256
#: By how much of itself the cost of what two axes gain and lose may be wrong where each is asked about alone.
LEEWAY = 0.1


def fit(
    budget: Budget, losses: Sequence[FloatArray], widths: Widths, aligns: Widths, fewest: Widths | int = 1
) -> Widths:
    """Chooses widths within the budget: least loss per cost saved first, then exchanges while they help.

    The step of an axis is whichever of the next :data:`LOOK_AHEAD` numbers of groups loses least per cost, so
    that on a staircase groups leave together where only together they save something.

    Args:
        budget: The budget.
        losses: Per axis, shape ``(living groups + 1,)``: what is lost when so many groups are left.
        widths: Shape ``(axes,)``: living members per axis.
        aligns: Shape ``(axes,)``: members per group.
        fewest: Groups that every axis keeps, the strongest ones.

    Returns:
        Widths of shape ``(axes,)`` with ``budget.used <= budget.limit``. No axis could be wider alone within
        the budget, and of the exchanges that were looked at none would lose less.

    Raises:
        TargetError: If the budget is exceeded at the fewest groups.
    """
    table = _as_table(losses)
    current = widths.copy()
    used = float(budget.used(current))
    while used > budget.limit:
        current = _narrowed(budget, table, current, used, aligns, fewest)
        used = float(budget.used(current))
    while (better := _exchanged(budget, table, current, widths, aligns, fewest)) is not None:
        current = better
    return current


def _as_table(losses: Sequence[FloatArray]) -> FloatArray:
    """Losses of all axes, shape ``(axes, most groups + 1)``; no axis has the groups behind its own."""
    table = np.zeros((len(losses), max(len(each) for each in losses)))
    for row, each in zip(table, losses, strict=True):
        row[: len(each)] = each
    return table


def _groups(widths: Widths, aligns: Widths) -> Widths:
    """Numbers of groups, the smaller ones at the end included."""
    return -(-widths // aligns)


def _narrowed(
    budget: Budget, table: FloatArray, current: Widths, used: float, aligns: Widths, fewest: Widths | int
) -> Widths:
    """The next step down: the axis and the number of groups with the least loss per cost.

    Raises:
        TargetError: If no axis can lose any.
    """
    axes = np.arange(len(current))
    have = _groups(current, aligns)
    if not (have > fewest).any():
        raise TargetError(
            "the groups that live exceed the budget when as few are left as there can be",
            expected=f"a budget of at least {used:.4g}",
            got=f"{budget.limit:.4g}",
            hint="ask for less, or start from another network",
        )
    steps = np.arange(1, LOOK_AHEAD + 1)
    networks = np.stack([narrower(current, aligns, int(step), fewest) for step in steps])
    savings = used - budget.used(networks)
    lost = table[axes, np.maximum(have - steps[:, None], fewest)] - table[axes, have]
    floor = max(COST_FLOOR * float(np.abs(savings).mean()), 1e-12 * max(used, 1e-300))
    ratios = np.where(have - steps[:, None] >= fewest, lost / np.maximum(savings, floor), np.inf)
    step, axis = np.unravel_index(int(np.argmin(ratios)), ratios.shape)
    return np.asarray(networks[step, axis])


def _exchanged(
    budget: Budget, table: FloatArray, current: Widths, widths: Widths, aligns: Widths, fewest: Widths | int
) -> Widths | None:
    """The network with the least loss that comes of one axis being wider, maybe at the expense of another.

    Returns:
        ``None`` where every such network loses more or exceeds the budget.
    """
    candidates = _candidates(budget, table, current, widths, aligns, fewest)
    for start in range(0, len(candidates), ASKED_AT_ONCE):
        part = candidates[start : start + ASKED_AT_ONCE]
        fits = budget.used(part) <= budget.limit
        if fits.any():
            return np.asarray(part[int(np.argmax(fits))])
    return None


def _candidates(
    budget: Budget, table: FloatArray, current: Widths, widths: Widths, aligns: Widths, fewest: Widths | int
) -> Widths:
    """Networks that lose less than the current one, may be within the budget, and differ in one or two axes.

    Returns:
        Widths of shape ``(candidates, axes)``, those that lose least first.
    """
    have, most, axes = _groups(current, aligns), _groups(widths, aligns), np.arange(len(current))
    steps = np.arange(-EXCHANGED, EXCHANGED + 1)
    groups = np.clip(have + steps[:, None], np.minimum(fewest, have), most)
    changed = np.minimum(groups * aligns, widths)
    alone = np.tile(current, (len(steps), len(current), 1))
    alone[:, axes, axes] = changed
    costs = budget.used(alone) - budget.used(current)
    lost = table[axes, groups] - table[axes, have]
    wider, other = slice(EXCHANGED + 1, None), slice(None, EXCHANGED + 1)  # the last of which changes nothing
    total_lost = lost[wider][:, :, None, None] + lost[other]
    total_cost = costs[wider][:, :, None, None] + costs[other]
    room = budget.limit - float(budget.used(current))
    leeway = LEEWAY * (np.abs(costs[wider])[:, :, None, None] + np.abs(costs[other]))
    better = (total_lost < -1e-12 * max(float(np.abs(table).max()), 1e-300)) & (total_cost <= room + leeway)
    # An axis that is wider at the expense of none is paired with itself.
    better &= np.eye(len(axes), dtype=bool)[:, None, :] == (steps[other] == 0)[:, None]
    places = np.nonzero(better)
    best = np.argsort(total_lost[better], kind="stable")[:MOST_ASKED]
    up, axis, down, at_expense = (place[best] for place in places)
    found = np.tile(current, (len(up), 1))
    rows = np.arange(len(up))
    found[rows, at_expense] = changed[other][down, at_expense]
    found[rows, axis] = changed[wider][up, axis]
    return found
