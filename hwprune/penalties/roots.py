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

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hwprune.penalties.ramps import Tiles

#: Groups in the sample that a cold start of many groups solves first: about so many, or one in about so many.
#: What is spent by the sample is then off by less than what two Newton steps mend.
SAMPLE, _ONE_IN = 1 << 15, 1 << 8
#: A sample is drawn of so many times its size.
_WORTH_SAMPLING = 8
#: Newton steps before every other step becomes a halving of the bracket.
_FREE_STEPS = 12
#: Any two floating-point numbers are 64 halvings apart.
_MOST_STEPS = _FREE_STEPS + 2 * 64
#: Relative error of a sum of costs.
_COST_ROUNDING = 4 * torch.finfo(torch.float64).eps


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
    if budget.numel() > 1:
        return _root_per_row(tiles.spent_and_rate, budget, start, tiles.dtype)

    def evaluate(root: float) -> tuple[float, float]:
        spent, rate = torch.cat(tiles.spent_and_rate(root)).tolist()
        return spent, rate

    return torch.full_like(budget, one_root(evaluate, float(budget), float(start), tiles.dtype))


def _cold_guess(tiles: Tiles, budget: Tensor) -> Tensor:
    """A first root: a sample's for many groups, else as if every group were opening."""
    norms, ramps = tiles.norms, tiles.ramps
    groups = norms.shape[1]
    stride = sample_stride(groups)
    if norms.shape[0] == 1 and stride > 1:
        drawn_ones = slice(None, None, stride)
        sample, part = norms[:, drawn_ones], ramps.part(drawn_ones, slice(None))
        whole, drawn = _total(ramps.cost, groups), _total(part.cost, sample.shape[1])
        return solve_root(Tiles(sample, part, tiles.dtype), budget * (drawn / whole))
    slopes = (norms.T * (ramps.cost * ramps.gain)).sum(0)
    offsets = (ramps.cost * ramps.offset * (norms.T > 0)).sum(0)
    return (budget + offsets) / slopes


def sample_stride(groups: int) -> int:
    """Every which group makes up the sample: 1 where there are too few of them to draw one.

    It is odd, because layers tend to repeat themselves with an even period.

    >>> sample_stride(100_000), sample_stride(1_000_000), sample_stride(25_000_000)
    (1, 31, 257)
    """
    if groups <= _WORTH_SAMPLING * SAMPLE:
        return 1
    return min(groups // SAMPLE, _ONE_IN) | 1


def _total(cost: Tensor, groups: int) -> Tensor:
    """The cost of all groups, of shape ``(groups or 1, 1)``."""
    return cost.sum() * (groups if cost.shape[0] == 1 else 1)


def one_root(
    evaluate: Callable[[float], tuple[float, float]],
    budget: float,
    start: float,
    dtype: torch.dtype,
    rounding: float = _COST_ROUNDING,
    known: tuple[float, float] | None = None,
) -> float:
    """Newton's method inside a bracket, for one row; see the module.

    Args:
        evaluate: A root to what it spends and the derivative of that.
        budget: Not negative.
        start: What is not a positive number is replaced.
        dtype: The root is rounded to it.
        rounding: Relative error of what is spent on a level stretch.
        known: What ``evaluate`` has found already at :func:`first_root` of ``start``.
    """
    if budget <= 0:
        return 0.0
    limits = torch.finfo(dtype)
    low, high = 0.0, math.inf
    root = first_root(start, dtype)
    for step in range(_MOST_STEPS):
        spent, rate = known if known is not None and not step else evaluate(root)
        short = spent < budget
        # On a level stretch rounding of the costs is all that can be left.
        level = rate == 0 and abs(spent - budget) <= rounding * spent
        if spent == budget or level or (short and root >= limits.max):
            return root
        low, high = (root, high) if short else (low, root)
        newton = root + (budget - spent) / rate if rate > 0 else math.nan
        if abs(newton - root) <= 2 * limits.eps * root:
            return _rounded(newton, dtype)
        usable = low < newton < high and not _halves(step)
        proposed = newton if usable else _inner_point(low, high, step, limits.max)
        root = _rounded(max(proposed, limits.tiny), dtype)
        if high < math.inf and high - low <= 2 * limits.eps * high:
            return root
    return root


def first_root(start: float, dtype: torch.dtype) -> float:
    """Where the search begins: the start as ``dtype`` holds it, or 1 where it is no number.

    >>> first_root(float("nan"), torch.float32), first_root(-1.0, torch.float32) > 0
    (1.0, True)
    """
    limits = torch.finfo(dtype)
    return _rounded(min(max(start, limits.tiny), limits.max) if start == start else 1.0, dtype)


def _halves(step: int) -> bool:
    """Whether this step halves the bracket whatever Newton's method proposes."""
    return step >= _FREE_STEPS and step % 2 == 1


def _inner_point(low: float, high: float, step: int, top: float) -> float:
    """A point of the bracket that shrinks it for certain.

    Halves the bracket in the order of floating-point numbers, whose bits, read as integers, are in the
    order of their values; strides away ever faster from the only end that is known.
    """
    if low > 0 and high < math.inf:
        bits = np.array([low, high]).view(np.int64)
        return float(np.array(bits[0] + (bits[1] - bits[0]) // 2).view(np.float64))
    stride = _stride(step)
    return min(low * stride, top) if low > 0 else high / stride


def _stride(step: int) -> float:
    return math.ldexp(1.0, min(2**step, 1000))


def _rounded(root: float, dtype: torch.dtype) -> float:
    """The root as ``dtype`` holds it, so that it is what is evaluated."""
    return float(np.float32(root)) if dtype == torch.float32 else root


def _root_per_row(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], budget: Tensor, start: Tensor, dtype: torch.dtype
) -> Tensor:
    """:func:`one_root` for many rows at once; everything has shape ``(rows,)``."""
    limits = torch.finfo(dtype)
    low, high = torch.zeros_like(budget), torch.full_like(budget, torch.inf)
    root = torch.nan_to_num(start, nan=1.0, posinf=limits.max).clamp(limits.tiny, limits.max)
    root = root.to(dtype).double()
    finished = budget <= 0
    for step in range(_MOST_STEPS):
        spent, rate = evaluate(root)
        short = spent < budget
        low, high = torch.where(short, root, low), torch.where(short, high, root)
        # Every comparison with what a rate of 0 gives is false.
        newton = root + (budget - spent) / rate
        still = (newton - root).abs() <= 2 * limits.eps * root
        usable = (newton > low) & (newton < high)
        if _halves(step):
            usable = torch.zeros_like(usable)
        proposed = torch.where(usable | still, newton, _inner_points(low, high, step, limits.max))
        proposed = proposed.clamp_min(limits.tiny).to(dtype).double()
        closed = torch.isfinite(high) & (high - low <= 2 * limits.eps * high)
        level = (rate == 0) & ((spent - budget).abs() <= _COST_ROUNDING * spent)
        exact = (spent == budget) | level | (short & (root >= limits.max))
        root = torch.where(finished | exact, root, proposed)
        finished = finished | exact | still | closed
        if bool(finished.all()):
            break
    return torch.where(budget <= 0, 0.0, root)


def _inner_points(low: Tensor, high: Tensor, step: int, top: float) -> Tensor:
    """:func:`_inner_point` for many rows at once."""
    low_bits, high_bits = low.view(torch.int64), high.view(torch.int64)
    halfway = (low_bits + (high_bits - low_bits) // 2).view(low.dtype)
    beyond = torch.where(low > 0, (low * _stride(step)).clamp(max=top), high / _stride(step))
    return torch.where(torch.isfinite(high) & (low > 0), halfway, beyond)
