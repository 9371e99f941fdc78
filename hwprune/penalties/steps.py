"""One proximal step of an envelope on rows of groups, whatever their weights.

u_j = clip(gain_j t_j s - offset_j, 0, 1)       f_j = u_j / (u_j kept_j + pull_j)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hwprune.penalties.base import COST_ROUNDING
from hwprune.penalties.ramps import Ramps, Tiles, row_slices, take
from hwprune.penalties.roots import solve_root

#: Steepest ramp: groups whose norms differ by less than 2^-26 of themselves are taken for ties. It keeps
#: half of the digits of float64 for the opening of a group in the middle of its ramp.
_STEEPEST = 2.0**26


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """The ramps of a proximal step, and the weights of its factors.

    Attributes:
        ramps: How the groups open.
        kept: Shape ``(groups or 1, rows or 1)``, float64: what is kept of an open group's quadratic.
        pull: Likewise: ``L a``.
        unit: What roots are multiplied by for these ramps.
    """

    ramps: Ramps
    kept: Tensor
    pull: Tensor
    unit: Tensor


def make_step(ridge: Tensor, cost: Tensor, strengths: Tensor, *, debias: bool) -> Step:
    """The proximal step of every row.

    Args:
        ridge: Shape ``(groups or 1, 1)``, float64, positive.
        cost: Likewise.
        strengths: Shape ``(rows or 1,)``, float64, positive.
        debias: Whether the exact form is meant.
    """
    pull = strengths[None, :] * ridge
    if debias:
        pull = pull.clamp(max=1 - 1 / _STEEPEST)
        kept = 1 - pull
        # u = (s t sqrt(a / c) - L a) / (1 - L a), with the a that the limit on L a leaves.
        gain, offset = (pull / strengths / cost).sqrt() / kept, pull / kept
    else:
        kept = torch.ones_like(pull)
        # u = s t sqrt(a / c) - L a, both made smaller alike where the ramp is too steep.
        offset = pull.clamp(max=_STEEPEST)
        gain = (ridge / cost).sqrt() * (offset / pull)
    ramps, unit = scaled(gain, offset, cost)
    return Step(ramps, kept, pull, unit)


def scaled(gain: Tensor, offset: Tensor, cost: Tensor) -> tuple[Ramps, Tensor]:
    """Ramps whose largest gain is 1, and what their roots are multiplied by for it."""
    unit = gain.amax()
    return Ramps(gain / unit, offset, cost), unit


def solve_rows(
    norms: Tensor, step: Step, budget: Tensor, start: Tensor | None, dtype: torch.dtype, factors: Tensor
) -> Tensor:
    """Solves every row and fills in its factors.

    Args:
        norms: Shape ``(rows, groups)``.
        step: What to do.
        budget: Shape ``(rows,)``, float64.
        start: Roots to start from, in the step's unit, shape ``(rows,)``, or ``None``.
        dtype: The working precision.
        factors: Shape ``(rows, groups)``; overwritten.

    Returns:
        The roots in the step's unit, shape ``(rows,)``, float64.
    """
    roots = torch.empty_like(budget)
    kept, pull = step.kept.to(dtype), step.pull.to(dtype)
    for rows in row_slices(norms):
        tiles = Tiles(norms[rows], step.ramps.part(slice(None), rows), dtype)
        roots[rows] = solve_root(tiles, budget[rows], None if start is None else start[rows])
        special = _special(norms[rows], step.ramps.cost, budget[rows], roots[rows], dtype)
        for tile, _ in tiles.open(roots[rows]):
            opened, target = tile.opened.clamp_(0.0, 1.0), factors[rows, tile.groups].T
            torch.mul(opened, take(kept, tile.groups, rows), out=tile.spare)
            tile.spare.add_(take(pull, tile.groups, rows))
            if target.dtype == dtype:
                torch.div(opened, tile.spare, out=target)
            else:
                target.copy_(opened.div_(tile.spare))
        if special is not None:
            which, whole = special
            numbers = which.nonzero()[:, 0] + rows.start
            factors[numbers] = _special_factors(whole, step, budget[numbers], numbers).to(factors.dtype)
    return roots


def _special(
    norms: Tensor, cost: Tensor, budget: Tensor, roots: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """Rows that fit the budget, or are too small for the working precision: flags, and a copy of their norms.

    The root of either is as large as the precision allows, and the factors may be written over the norms.
    Sums of unequal costs fit up to rounding.
    """
    found = roots >= torch.finfo(dtype).max
    if cost.shape[0] > 1:
        found = found | _fits(norms, cost, budget)
    return (found, norms[found].clone()) if bool(found.any()) else None


def _fits(norms: Tensor, cost: Tensor, budget: Tensor) -> Tensor:
    """Whether what is not zero costs no more than the budget, but for rounding: shape ``(rows,)``."""
    return torch.where(norms > 0, cost.T, 0.0).sum(-1) <= budget * (1 + COST_ROUNDING)


def _special_factors(norms: Tensor, step: Step, budget: Tensor, numbers: Tensor) -> Tensor:
    """The factors of the rows that :func:`_special` found, float64, shape ``(found, groups)``."""
    ramps, kept, pull = step.ramps, *(_rows_of(weights, numbers) for weights in (step.kept, step.pull))
    opened = (norms > 0).double()
    small = _fits(norms, ramps.cost, budget).logical_not()
    if bool(small.any()):
        shares = norms[small].double()
        shares /= shares.amax(-1, keepdim=True)
        part = Ramps(_rows_of(ramps.gain, numbers[small]), _rows_of(ramps.offset, numbers[small]), ramps.cost)
        tiles = Tiles(shares, part, torch.float64)
        for tile, _ in tiles.open(solve_root(tiles, budget[small])):
            shares[:, tile.groups] = tile.opened.clamp_(0.0, 1.0).T
        opened[small] = shares
    return opened / (opened * kept.T + pull.T)


def _rows_of(weights: Tensor, numbers: Tensor) -> Tensor:
    """The columns of some rows, of weights of shape ``(groups or 1, rows or 1)``."""
    return weights[:, numbers] if weights.shape[1] > 1 else weights
