"""The scalar equation behind every envelope: how far can the groups be opened within the budget?

    sum_j cost_j clip(gain_j t_j s - offset_j, 0, 1) = B

The left side is piecewise linear in ``s`` and does not decrease, but it is neither convex nor concave, so
Newton steps need a bracket. Inside the last bracket they end on the linear piece that holds the root, where
one step is exact. When they do not, the bracket is halved in the order of the floating-point numbers
themselves, which ends after at most 64 halvings: the number of passes over the groups is bounded, and the
time linear in their number, whatever the data.

A cold start of many groups takes its first guess from a sample of them, as selection by sampling does
(Floyd and Rivest, Expected time bounds for selection, 1975). Groups are read in tiles that stay in the
cache, so that no temporary of their full number is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Elements of one tile on the CPU: large enough to hide the cost of a call, small enough for the cache.
_CPU_TILE = 1 << 17
#: Elements of one tile elsewhere: one tile for all but the largest networks.
_DEVICE_TILE = 1 << 26
#: Groups in the sample that a cold start of many groups solves first.
_SAMPLE = 1 << 15
#: Newton steps before every other step becomes a halving of the bracket.
_FREE_STEPS = 12
#: Halvings that separate any two floating-point numbers.
_HALVINGS = 64
#: Norms of float32 within these bounds are safe to work on in float32.
_SAFE_RANGE = (1e-30, 1e30)


@dataclass(frozen=True, slots=True, eq=False)
class Ramps:
    """How groups open: ``u_j(s) = clip(gain_j t_j s - offset_j, 0, 1)``, each unit at ``cost_j``.

    Attributes:
        gain: Shape ``(groups or 1, rows or 1)``, float64, positive.
        offset: Likewise, not negative.
        cost: Likewise, positive.
    """

    gain: Tensor
    offset: Tensor
    cost: Tensor

    @property
    def uniform(self) -> bool:
        """Whether all groups open alike."""
        return self.gain.numel() == self.offset.numel() == self.cost.numel() == 1

    def part(self, groups: slice, rows: slice) -> Ramps:
        """The ramps of some groups and rows."""
        return Ramps(*(take(weights, groups, rows) for weights in (self.gain, self.offset, self.cost)))


def take(weights: Tensor, groups: slice, rows: slice) -> Tensor:
    """A part of weights of shape ``(groups or 1, rows or 1)``; what is broadcast stays so."""
    weights = weights if weights.shape[0] == 1 else weights[groups]
    return weights if weights.shape[1] == 1 else weights[:, rows]


def slices(length: int, step: int) -> Iterator[slice]:
    """Consecutive slices of at most ``step``.

    >>> list(slices(5, 3))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    return (slice(first, min(first + step, length)) for first in range(0, length, step))


def row_slices(norms: Tensor) -> Iterator[slice]:
    """Slices of the rows of ``norms`` that fill one tile, or single rows where one is more than that."""
    rows, groups = norms.shape
    return slices(rows, max(1, tile_size(norms) // max(groups, 1)))


def tile_size(norms: Tensor) -> int:
    """Elements that one tile may hold."""
    return _CPU_TILE if norms.device.type == "cpu" else _DEVICE_TILE


def working_dtype(norms: Tensor, greatest: float, ramps: Ramps) -> torch.dtype:
    """The precision in which openings are accurate to the rounding of the norms.

    float32 does for float32 norms where all groups open alike and gently: a steep ramp loses to
    cancellation, and costs would have to be exact in float32.

    Args:
        norms: Any norms.
        greatest: The greatest of them.
        ramps: How they open.
    """
    gentle = ramps.uniform and float(ramps.offset) <= 1.0
    if norms.dtype == torch.float32 and gentle and _SAFE_RANGE[0] < greatest < _SAFE_RANGE[1]:
        return torch.float32
    return torch.float64


def openings(norms: Tensor, ramps: Ramps, root: Tensor) -> Tensor:
    """``clip(gain t s - offset, 0, 1)``, not clipped yet.

    Args:
        norms: Shape ``(groups, rows)``, in the working precision.
        ramps: Their ramps.
        root: Shape ``(rows,)``.
    """
    return torch.mul(norms, (root * ramps.gain).to(norms.dtype)).sub_(ramps.offset.to(norms.dtype))


def solve_root(
    norms: Tensor, ramps: Ramps, budget: Tensor, start: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """A root of every row, exact to the rounding of ``dtype``.

    Args:
        norms: Shape ``(rows, groups)``, one tile: a single row, or rows that fit into one (see
            :func:`row_slices`).
        ramps: Their ramps, the largest gain being 1.
        budget: Shape ``(rows,)``, float64, not negative.
        start: Shape ``(rows,)``, a guess such as the root of the step before, or ``None``.
        dtype: The working precision.

    Returns:
        Shape ``(rows,)``, float64; 0 where the budget is, and the largest number of ``dtype`` where
        everything that is not zero fits.

    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> norms = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    >>> solve_root(norms, Ramps(one, 0 * one, one), one[0], None, torch.float64)
    tensor([0.6667], dtype=torch.float64)
    """
    rows, groups = norms.shape
    cuts = list(slices(groups, tile_size(norms))) if rows == 1 else [slice(0, groups)]
    tiles = [(norms[:, cut].T, ramps.part(cut, slice(0, rows))) for cut in cuts]
    if len(tiles) == 1:
        tiles = [(tiles[0][0].to(dtype).contiguous(), ramps)]

    def evaluate(root: Tensor) -> tuple[Tensor, Tensor]:
        spent, rate = torch.zeros_like(budget), torch.zeros_like(budget)
        for tile, part in tiles:
            values = tile.to(dtype)
            opened = openings(values, part, root)
            spent_here, rate_here = _spent_and_rate(values, part, opened)
            spent, rate = spent + spent_here, rate + rate_here
        return spent, rate

    if start is None:
        start = _cold_guess(norms, tiles, ramps, budget, dtype)
    return _safeguarded_newton(evaluate, budget, start, dtype)


def _spent_and_rate(norms: Tensor, ramps: Ramps, opened: Tensor) -> tuple[Tensor, Tensor]:
    """The left side of the equation and its derivative, shape ``(rows,)`` each; clips ``opened``."""
    # The backward of a clip passes its first argument where the second lies strictly inside; unlike
    # comparisons and masks it is vectorised on the CPU, an order of magnitude faster.
    moving = torch.ops.aten.hardtanh_backward(norms, opened, 0.0, 1.0)
    if ramps.uniform:
        # The rate only steers the steps, so it may be summed in the working precision.
        rate = moving.sum(0).double() * (ramps.cost * ramps.gain)[0]
    else:
        rate = (moving * (ramps.cost * ramps.gain)).sum(0)
    clipped = opened.clamp_(0.0, 1.0)
    if ramps.cost.numel() == 1:
        return clipped.sum(0, dtype=torch.float64) * ramps.cost[0], rate
    return (clipped * ramps.cost).sum(0), rate


def _cold_guess(
    norms: Tensor, tiles: list[tuple[Tensor, Ramps]], ramps: Ramps, budget: Tensor, dtype: torch.dtype
) -> Tensor:
    """A first root: a sample's for many groups, else as if every group were opening."""
    groups = norms.shape[1]
    if len(tiles) > 1 and groups > 2 * _SAMPLE:
        stride = slice(None, None, -(-groups // _SAMPLE))
        sample, part = norms[:, stride], ramps.part(stride, slice(0, 1))
        whole = ramps.cost.sum() * (groups if ramps.cost.shape[0] == 1 else 1)
        drawn = part.cost.sum() * (sample.shape[1] if part.cost.shape[0] == 1 else 1)
        return solve_root(sample, part, budget * (drawn / whole), None, dtype)
    slopes, offsets = torch.zeros_like(budget), torch.zeros_like(budget)
    for tile, part in tiles:
        slopes = slopes + (tile * (part.cost * part.gain)).sum(0)
        offsets = offsets + (part.cost * part.offset * (tile > 0)).sum(0)
    return (budget + offsets) / slopes


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
