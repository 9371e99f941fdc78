"""One row of float32 groups that open alike: their proximal step is a firm threshold.

    u(t) = clip((s t - pull) / kept, 0, 1) = clip((t - low) / (high - low), 0, 1)
    f(t) = u / (u kept + pull)             = clip((1 - low / t) / kept, 0, 1 / (kept + pull))

where ``low = pull / s`` and ``high = (kept + pull) / s``: with the ``kept = 1 - L`` of the exact form, groups
above ``high`` are left alone. One threshold for all needs fewer passes than the general case.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hwprune.penalties.ramps import tile_size
from hwprune.penalties.roots import SAMPLE, one_root

#: Ratios of ``pull`` and ``kept`` up to this much leave enough digits to ``1 - low / t``.
GREATEST_RATIO = 1.0
#: What is spent where every group is open or closed is exact to this much of the budget.
_ROUNDING = 1e-9
_TINY = torch.finfo(torch.float32).tiny
#: A root where less than the budget is spent however far the groups are opened.
UNBOUNDED = torch.finfo(torch.float32).max


class FirmRow:
    """Groups with ``u = clip((s t - pull) / kept, 0, 1)`` and ``f = u / (u kept + pull)``.

    Args:
        norms: Shape ``(groups,)``, float32, contiguous, the largest far from the bounds of float32.
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
        self._tiles = [(tile, part, wide) for tile in tiles[:-1]]
        left = tiles[-1].numel()
        whole = left == self._size
        self._tiles.append((tiles[-1], part if whole else part[:left], wide if whole else wide[:left]))

    def _split(self, values: Tensor) -> Sequence[Tensor]:
        """Values in tiles; a row that is no longer than one tile as it is, which takes no time."""
        return (values,) if values.numel() == self._size else torch.split(values, self._size)

    def root(self, budget: float, start: float | None = None) -> float:
        """Where the openings add up to ``budget``; see :func:`~hwprune.penalties.roots.solve_root`.

        Args:
            budget: Not negative.
            start: A guess such as the root of the step before.
        """
        guess = self._cold_guess(budget) if start is None else start
        return one_root(self._spent_and_rate, budget, guess, torch.float32, _ROUNDING)

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

    def _spent_and_rate(self, root: float) -> tuple[float, float]:
        low, high = self._bounds(root)
        total = rate = 0.0
        for norms, part, wide in self._tiles:
            # The backward of a clip passes its first argument where the second lies strictly inside; unlike
            # comparisons and masks it is vectorised on the CPU, an order of magnitude faster.
            torch.ops.aten.hardtanh_backward.grad_input(norms, norms, low, high, grad_input=part)
            # The rate only steers, and may be summed as it is; what is spent must be exact.
            rate += float(part.sum())
            torch.clamp(norms, low, high, out=part)
            total += float(wide.copy_(part).sum())
        return (total - self._norms.numel() * low) / (high - low), rate / self._kept

    def _bounds(self, root: float) -> tuple[float, float]:
        """``low`` and ``high`` as float32 holds them, and apart."""
        low = max(float(np.float32(self._pull / root)), _TINY)
        high = max(float(np.float32((self._kept + self._pull) / root)), 2 * _TINY)
        return low, high

    def _cold_guess(self, budget: float) -> float:
        """A sample's root for many groups, else the root as if every group were opening."""
        groups = self._norms.numel()
        if groups > 16 * SAMPLE:
            sample = self._norms[:: -(-groups // SAMPLE)].contiguous()
            return FirmRow(sample, self._kept, self._pull).root(budget * sample.numel() / groups)
        total = float(self._norms.sum())
        return (budget * self._kept + self._pull * groups) / max(total, _TINY)
