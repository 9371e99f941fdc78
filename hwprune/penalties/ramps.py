"""How groups open as the root of the budget equation grows, computed tile by tile.

Groups are read in tiles that stay in the cache, so that no temporary of their full number is made and the
time goes into arithmetic instead of fresh memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: Elements of one tile on the CPU: enough to hide the cost of a call, few enough for a tile of float32 and
#: what is computed of it to stay in a second cache of a MiB; norms of no more than the second number are one.
_CPU_TILE, _ONLY_CPU_TILE = 1 << 16, 1 << 17
#: Elements of one tile elsewhere: one tile for all but the largest networks.
_DEVICE_TILE = 1 << 26
_ALL = slice(None)


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
    return slices(rows, max(1, tile_size(norms) // max(groups, 1)))


def tile_size(norms: Tensor) -> int:
    """Elements of one tile where the norms are."""
    if norms.device.type != "cpu":
        return _DEVICE_TILE
    return _ONLY_CPU_TILE if norms.numel() <= _ONLY_CPU_TILE else _CPU_TILE


def working_dtype(norms: Tensor, ramps: Ramps) -> torch.dtype:
    """The precision in which openings are accurate to the rounding of the norms.

    float32 does for float32 norms where all groups open alike and gently: a steep ramp loses digits to
    cancellation, a nearly level one has an offset that is 0 in float32, and costs would have to be exact.
    """
    gentle = ramps.uniform and torch.finfo(torch.float32).tiny <= float(ramps.offset) <= 1.0
    return torch.float32 if norms.dtype == torch.float32 and gentle else torch.float64


class Tile(NamedTuple):
    """Some groups of some rows; tiles of the same rows share their memory but for the norms.

    Attributes:
        groups: Which groups.
        norms: Shape ``(groups, rows)``.
        opened: Same shape, in the working precision: ``gain t s - offset``.
        spare: Likewise, for intermediate results.
        wide: Likewise, in float64.
    """

    groups: slice
    norms: Tensor
    opened: Tensor
    spare: Tensor
    wide: Tensor


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
        cuts = list(slices(groups, tile_size(norms))) if rows == 1 else [slice(0, groups)]
        # Memory that is asked for again for every tile costs more than what is computed in it.
        shape = (cuts[0].stop, rows)
        opened, spare = norms.new_empty(shape, dtype=dtype), norms.new_empty(shape, dtype=dtype)
        wide = norms.new_empty(shape, dtype=torch.float64)
        self.tiles = [
            Tile(cut, norms[:, cut].T, *(memory[: cut.stop - cut.start] for memory in (opened, spare, wide)))
            for cut in cuts
        ]
        if len(cuts) == 1:
            whole = norms.T.to(dtype).contiguous()
            self.tiles = [Tile(cuts[0], whole, opened, spare, wide)]
        self._offset = ramps.offset.to(dtype)
        self._slope = ramps.cost * ramps.gain

    def open(self, root: Tensor | float) -> Iterator[tuple[Tile, Tensor]]:
        """Every tile with ``opened`` filled in, and its norms in the working precision.

        Args:
            root: ``s``, shape ``(rows,)``, float64, or the number of the only row.
        """
        scale = (root * self.ramps.gain).to(self.dtype)
        for tile in self.tiles:
            norms = tile.norms if tile.norms.dtype == self.dtype else tile.wide.copy_(tile.norms)
            torch.mul(norms, take(scale, tile.groups, _ALL), out=tile.opened)
            tile.opened.sub_(take(self._offset, tile.groups, _ALL))
            yield tile, norms

    def spent_and_rate(self, root: Tensor | float) -> tuple[Tensor, Tensor]:
        """``sum_j cost_j u_j(s)`` and its derivative in ``s``, shape ``(rows,)`` each, float64."""
        spent, rates = [], []
        for tile, norms in self.open(root):
            # The backward of a clip passes its first argument where the second lies strictly inside; unlike
            # comparisons and masks it is vectorised on the CPU, an order of magnitude faster.
            torch.ops.aten.hardtanh_backward.grad_input(norms, tile.opened, 0.0, 1.0, grad_input=tile.spare)
            tile.opened.clamp_(0.0, 1.0)
            if self.ramps.uniform:
                # What is spent must be exact; the rate only steers, and may be summed as it is.
                spent.append(tile.wide.copy_(tile.opened).sum(0))
                rates.append(tile.spare.sum(0))
            else:
                cost, slope = (take(each, tile.groups, _ALL) for each in (self.ramps.cost, self._slope))
                spent.append(torch.mul(tile.opened, cost, out=tile.wide).sum(0))
                rates.append(torch.mul(tile.spare, slope, out=tile.wide).sum(0))
        if len(spent) > 1:
            spent, rates = [torch.stack(spent).sum(0)], [torch.stack(rates).double().sum(0)]
        if self.ramps.uniform:
            return spent[0] * self.ramps.cost[0], rates[0] * self._slope[0]
        return spent[0], rates[0]
