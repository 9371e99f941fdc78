"""One row of float32 groups that open alike: their proximal step is a firm threshold.

    u(t) = clip((s t - pull) / kept, 0, 1) = clip((t - low) / (high - low), 0, 1)
    f(t) = u / (u kept + pull)             = clip((1 - low / t) / kept, 0, 1 / (kept + pull))

where ``low = pull / s`` and ``high = (kept + pull) / s``: with the ``kept = 1 - L`` of the exact form, groups
above ``high`` are left alone. One threshold for all needs fewer passes than the general case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwprune.penalties.base import check_extremes
from hwprune.penalties.ramps import tile_size
from hwprune.penalties.roots import first_root, one_root, sample_stride

#: Ratios of ``pull`` and ``kept`` up to this much leave enough digits to ``1 - low / t``.
GREATEST_RATIO = 1.0
#: What is spent where every group is open or closed is exact to this much of the budget.
_ROUNDING = 1e-9
_TINY = torch.finfo(torch.float32).tiny
#: Norms with a maximum in this range are far from the bounds of float32.
SAFE_RANGE = (1e-30, 1e30)
#: A root where less than the budget is spent however far the groups are opened.
_UNBOUNDED = torch.finfo(torch.float32).max


class _Tile(NamedTuple):
    """Some of the norms, with memory that all tiles share: ``part`` in float32, ``wide`` in float64."""

    norms: Tensor
    part: Tensor
    wide: Tensor


class FirmRow:
    """Groups with ``u = clip((s t - pull) / kept, 0, 1)`` and ``f = u / (u kept + pull)``.

    Args:
        norms: Shape ``(groups,)``, float32, contiguous, at least one. They are checked where they are first
            read, by :meth:`root`: one pass less over memory.
        kept: What is kept of an open group's quadratic: ``1 - L`` for the exact form, 1 for the plain one.
        pull: ``L``, positive, at most :data:`GREATEST_RATIO` times ``kept``.

    >>> row = FirmRow(torch.tensor([3.0, 1.0]), kept=0.8, pull=0.2)
    >>> factors = torch.empty(2)
    >>> row.factors_into(factors, row.root(1.0))
    >>> factors
    tensor([0.9722, 0.4167])
    """

    def __init__(self, norms: Tensor, kept: float, pull: float) -> None:
        self._norms, self._kept, self._pull = norms, kept, pull
        self._size = max(1, min(norms.numel(), tile_size(norms)))
        part, wide = norms.new_empty(self._size), norms.new_empty(self._size, dtype=torch.float64)
        tiles = self._split(norms)
        # All tiles but the last are of one size; slicing memory costs as much as working on a small tile.
        self._tiles = [_Tile(tile, part, wide) for tile in tiles[:-1]]
        left = tiles[-1].numel()
        whole = left == self._size
        memory = (part, wide) if whole else (part[:left], wide[:left])
        self._tiles.append(_Tile(tiles[-1], *memory))

    def _split(self, values: Tensor) -> Sequence[Tensor]:
        """Values in tiles; a row that is no longer than one tile as it is, which takes no time."""
        return (values,) if values.numel() == self._size else torch.split(values, self._size)

    def root(self, budget: float, start: float | None = None) -> float | None:
        """Where the openings add up to ``budget``; see :func:`~hwprune.penalties.roots.solve_root`.

        Args:
            budget: Not negative.
            start: A guess such as the root of the step before.

        Returns:
            The root; ``None`` where another way has to be taken: everything fits, or the largest norm is 0 or
            close to the bounds of float32.

        Raises:
            InputError: If a norm is negative, infinite or NaN.
        """
        first = first_root(self._cold_guess(budget) if start is None else start, torch.float32)
        spent, rate, largest = self._look(first)
        if not SAFE_RANGE[0] < largest < SAFE_RANGE[1]:
            return None
        found = one_root(self._spent_and_rate, budget, first, torch.float32, _ROUNDING, (spent, rate))
        return found if found < _UNBOUNDED else None

    def factors_into(self, factors: Tensor, root: float) -> None:
        """Writes the factors at ``root``, shape ``(groups,)``; the norms themselves may be overwritten."""
        if root <= 0:
            factors.zero_()
            return
        low, _ = self._bounds(root)
        steepness, most = 1 / self._kept, 1 / (self._kept + self._pull)
        limit = torch.full((), steepness, dtype=torch.float32)
        for (norms, shrunk, _), target in zip(self._tiles, self._split(factors), strict=True):
            torch.reciprocal(norms, out=shrunk)
            torch.add(limit, shrunk, alpha=-low * steepness, out=shrunk)
            torch.clamp(shrunk, 0.0, most, out=target)

    def _look(self, root: float) -> tuple[float, float, float]:
        """:meth:`_spent_and_rate` and the largest norm; refuses what is no norm before its memory is left."""
        low, high = self._bounds(root)
        total = slope = largest = 0.0
        for tile in self._tiles:
            largest = max(largest, check_extremes(*torch.aminmax(tile.norms)))
            clipped, inside = _sums(tile, low, high)
            total, slope = total + clipped, slope + inside
        return (total - self._norms.numel() * low) / (high - low), slope / self._kept, largest

    def _spent_and_rate(self, root: float) -> tuple[float, float]:
        low, high = self._bounds(root)
        total = slope = 0.0
        for tile in self._tiles:
            clipped, inside = _sums(tile, low, high)
            total, slope = total + clipped, slope + inside
        return (total - self._norms.numel() * low) / (high - low), slope / self._kept

    def _bounds(self, root: float) -> tuple[float, float]:
        """``low`` and ``high`` as float32 holds them, and apart."""
        low = max(float(np.float32(self._pull / root)), _TINY)
        high = max(float(np.float32((self._kept + self._pull) / root)), 2 * _TINY)
        return low, high

    def _cold_guess(self, budget: float) -> float:
        """A sample's root for many groups, else the root as if every group were opening."""
        groups, stride = self._norms.numel(), sample_stride(self._norms.numel())
        if stride > 1:
            sample = self._norms[::stride].contiguous()
            found = FirmRow(sample, self._kept, self._pull).root(budget * sample.numel() / groups)
            return 1.0 if found is None else found
        total = float(self._norms.sum())
        return (budget * self._kept + self._pull * groups) / max(total, _TINY)


def _sums(tile: _Tile, low: float, high: float) -> tuple[float, float]:
    """Of the norms clipped to the bounds, and of those between them."""
    # The backward of a clip passes its first argument where the second lies strictly inside; unlike
    # comparisons and masks it is vectorised on the CPU, an order of magnitude faster.
    torch.ops.aten.hardtanh_backward.grad_input(tile.norms, tile.norms, low, high, grad_input=tile.part)
    # The rate only steers, and may be summed as it is; what is spent must be exact.
    inside = float(tile.part.sum())
    torch.clamp(tile.norms, low, high, out=tile.part)
    return float(tile.wide.copy_(tile.part).sum()), inside
