"""The scalar equation behind every envelope: how far can the groups be opened within the budget?

    sum_j cost_j clip(gain_j t_j s - offset_j, 0, 1) = B

The left side is piecewise linear in ``s`` and does not decrease, but it is neither convex nor concave, so
Newton steps need a bracket. Inside the last bracket they end on the linear piece that holds the root, where
one step is exact. When they do not, the bracket is halved in the order of the floating-point numbers
themselves, which ends after at most 64 halvings: the number of passes over the groups is bounded, and the
time linear in their number, whatever the data.

A cold start of many groups takes its first guess from a sample of them, as selection by sampling does
(Floyd and Rivest, Expected time bounds for selection, 1975).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hwprune.penalties.ramps import Tiles

#: Groups in the sample that a cold start of many groups solves first.
_SAMPLE = 1 << 15
#: Newton steps before every other step becomes a halving of the bracket.
_FREE_STEPS = 12
#: Halvings that separate any two floating-point numbers.
_HALVINGS = 64


def solve_root(tiles: Tiles, budget: Tensor, start: Tensor | None = None) -> Tensor:
    """A root of every row, exact to the rounding of the working precision.

    Args:
        tiles: The groups of the rows.
        budget: Shape ``(rows,)``, float64, not negative.
        start: Shape ``(rows,)``, a guess such as the root of the step before, or ``None``.

    Returns:
        Shape ``(rows,)``, float64; 0 where the budget is, and the largest number of the working precision
        where everything that is not zero fits.

    >>> from hwprune.penalties.ramps import Ramps
    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> norms = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    >>> solve_root(Tiles(norms, Ramps(one, 0 * one, one), torch.float64), one[0])
    tensor([0.6667], dtype=torch.float64)
    """
    start = _cold_guess(tiles, budget) if start is None else start
    return _safeguarded_newton(tiles.spent_and_rate, budget, start, tiles.dtype)


def _cold_guess(tiles: Tiles, budget: Tensor) -> Tensor:
    """A first root: a sample's for many groups, else as if every group were opening."""
    norms, ramps = tiles.norms, tiles.ramps
    groups = norms.shape[1]
    if len(tiles.cuts) > 1:
        stride = slice(None, None, -(-groups // _SAMPLE))
        sample, part = norms[:, stride], ramps.part(stride, slice(None))
        whole, drawn = _total(ramps.cost, groups), _total(part.cost, sample.shape[1])
        return solve_root(Tiles(sample, part, tiles.dtype), budget * (drawn / whole))
    slopes = (norms.T * (ramps.cost * ramps.gain)).sum(0)
    offsets = (ramps.cost * ramps.offset * (norms.T > 0)).sum(0)
    return (budget + offsets) / slopes


def _total(cost: Tensor, groups: int) -> Tensor:
    """The cost of all groups, of shape ``(groups or 1, 1)``."""
    return cost.sum() * (groups if cost.shape[0] == 1 else 1)


def _safeguarded_newton(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], budget: Tensor, start: Tensor, dtype: torch.dtype
) -> Tensor:
    """Newton's method inside a bracket; see the module.

    Args:
        evaluate: Roots to what they spend and its derivative, all of shape ``(rows,)``.
        budget: Shape ``(rows,)``.
        start: Shape ``(rows,)``; what is not a positive number is replaced.
        dtype: Roots are rounded to it.
    """
    precision = torch.finfo(dtype)
    top, tolerance, rounding = precision.max, 2 * precision.eps, 4 * torch.finfo(torch.float64).eps
    low, high = torch.zeros_like(budget), torch.full_like(budget, torch.inf)
    root = torch.nan_to_num(start, nan=1.0, posinf=top).clamp(precision.tiny, top)
    root = _rounded(root, dtype)
    finished = budget <= 0
    for step in range(_FREE_STEPS + 2 * _HALVINGS):
        spent, rate = evaluate(root)
        short = spent < budget
        low, high = torch.where(short, root, low), torch.where(short, high, root)
        # Every comparison with what a rate of 0 gives is false.
        newton = root + (budget - spent) / rate
        still = (newton - root).abs() <= tolerance * root
        usable = (newton > low) & (newton < high)
        if step >= _FREE_STEPS and step % 2:
            usable = torch.zeros_like(usable)
        proposed = torch.where(usable | still, newton, _inner_point(low, high, step, top))
        proposed = _rounded(proposed.clamp_min(precision.tiny), dtype)
        closed = torch.isfinite(high) & (high - low <= tolerance * high)
        # On a level stretch rounding of the costs is all that can be left.
        level = (rate == 0) & ((spent - budget).abs() <= rounding * budget)
        exact = (spent == budget) | level | (short & (root >= top))
        root = torch.where(finished | exact, root, proposed)
        finished = finished | exact | still | closed
        if bool(finished.all()):
            break
    return torch.where(budget <= 0, torch.zeros_like(root), root)


def _inner_point(low: Tensor, high: Tensor, step: int, top: float) -> Tensor:
    """A point of the bracket that shrinks it for certain.

    Halves the bracket in the order of floating-point numbers, whose bits, read as integers, are in the
    order of their values; strides away ever faster from the only end that is known.
    """
    stride = 2.0 ** min(2**step, 1000)
    known = torch.isfinite(high) & (low > 0)
    halfway = (low.view(torch.int64) + (high.view(torch.int64) - low.view(torch.int64)) // 2).view(low.dtype)
    beyond = torch.where(low > 0, (low * stride).clamp(max=top), high / stride)
    return torch.where(known, halfway, beyond)


def _rounded(root: Tensor, dtype: torch.dtype) -> Tensor:
    """The root as ``dtype`` holds it, so that it is what is evaluated."""
    return root.to(dtype).to(torch.float64)
