"""How groups open as the root of the budget equation grows, computed tile by tile.

Groups are read in tiles that stay in the cache, so that no temporary of their full number is made and the
time goes into arithmetic instead of fresh memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Elements of one tile on the CPU: large enough to hide the cost of a call, small enough for the cache.
_CPU_TILE = 1 << 18
#: Elements of one tile elsewhere: one tile for all but the largest networks.
_DEVICE_TILE = 1 << 26
#: Norms of float32 within these bounds are safe to work on in float32.
_SAFE_RANGE = (1e-30, 1e30)


@dataclass(frozen=True, slots=True, eq=False)
class Ramps:
    """``u_j(s) = clip(gain_j t_j s - offset_j, 0, 1)``, each unit of it at ``cost_j``.

    Attributes:
        gain: Shape ``(groups or 1, rows or 1)``, float64, positive, the largest being 1.
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
    return slices(rows, max(1, _tile_size(norms) // max(groups, 1)))


def _tile_size(norms: Tensor) -> int:
    return _CPU_TILE if norms.device.type == "cpu" else _DEVICE_TILE


def working_dtype(norms: Tensor, greatest: float, ramps: Ramps) -> torch.dtype:
    """The precision in which openings are accurate to the rounding of the norms.

    float32 does for float32 norms where all groups open alike and gently: a steep ramp loses digits to
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


class Tiles:
    """Rows of groups that open together, cut into tiles of shape ``(groups, rows)``.

    Groups come first so that a root per row broadcasts along the contiguous dimension, however few groups
    a row has.

    Args:
        norms: Shape ``(rows, groups)``: one row, or rows that fit into one tile (see :func:`row_slices`).
        ramps: How they open.
        dtype: The working precision.
    """

    def __init__(self, norms: Tensor, ramps: Ramps, dtype: torch.dtype) -> None:
        self.norms, self.ramps, self.dtype = norms, ramps, dtype
        rows, groups = norms.shape
        self.cuts = list(slices(groups, _tile_size(norms))) if rows == 1 else [slice(0, groups)]
        self._tiles = [norms[:, cut].T for cut in self.cuts]
        if len(self.cuts) == 1:
            self._tiles = [self._tiles[0].to(dtype).contiguous()]
        self._offset = ramps.offset.to(dtype)
        self._slope = ramps.cost * ramps.gain

    def openings(self, root: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Every tile's groups, its norms in the working precision, and ``gain t s - offset``, not clipped.

        Args:
            root: ``s``, shape ``(rows,)``, float64.
        """
        scale, every = (root * self.ramps.gain).to(self.dtype), slice(None)
        for cut, tile in zip(self.cuts, self._tiles, strict=True):
            norms = tile.to(self.dtype)
            yield cut, norms, torch.mul(norms, take(scale, cut, every)).sub_(take(self._offset, cut, every))

    def spent_and_rate(self, root: Tensor) -> tuple[Tensor, Tensor]:
        """``sum_j cost_j u_j(s)`` and its derivative in ``s``, shape ``(rows,)`` each, float64."""
        spent, rates, every = [], [], slice(None)
        for cut, norms, opened in self.openings(root):
            # The backward of a clip passes its first argument where the second lies strictly inside; unlike
            # comparisons and masks it is vectorised on the CPU, an order of magnitude faster.
            moving = torch.ops.aten.hardtanh_backward(norms, opened, 0.0, 1.0)
            clipped = opened.clamp_(0.0, 1.0)
            if self.ramps.uniform:
                # What is spent must be exact; the rate only steers, and may be summed as it is.
                spent.append(clipped.sum(0, dtype=torch.float64))
                rates.append(moving.sum(0))
            else:
                spent.append((clipped * take(self.ramps.cost, cut, every)).sum(0))
                rates.append((moving * take(self._slope, cut, every)).sum(0))
        total, rate = torch.stack(spent).sum(0), torch.stack(rates).sum(0, dtype=torch.float64)
        return (total * self.ramps.cost[0], rate * self._slope[0]) if self.ramps.uniform else (total, rate)
