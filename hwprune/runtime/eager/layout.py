"""Operators that move values about: shapes, slices, gathers, concatenations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hwprune.runtime.eager.table import translates

#: What stands for "to the end" in a slice, at either end of 64 bits.
_FAR = 2**62


@translates("Reshape", static=(1,))
def reshape(values: Tensor, shape: Sequence[int], *, allowzero: int = 0) -> Tensor:
    """Another shape; a size of 0 is that of the values."""
    sizes = [
        values.size(axis) if isinstance(size, int) and size == 0 and not allowzero else size
        for axis, size in enumerate(shape)
    ]
    return torch.reshape(values, tuple(sizes))


@translates("Flatten")
def flatten(values: Tensor, *, axis: int = 1) -> Tensor:
    """A matrix: the dimensions before an axis times the others."""
    if axis < 1:
        raise ValueError(f"flattening from axis {axis}")
    flat = torch.flatten(values, axis)
    return flat if axis == 1 else torch.flatten(flat, 0, axis - 1)


@translates("Transpose")
def transpose(values: Tensor, *, perm: Sequence[int]) -> Tensor:
    """Dimensions in another order."""
    return torch.permute(values, tuple(perm))


@translates("Squeeze", static=(1,))
def squeeze(values: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Without dimensions of one."""
    return torch.squeeze(values) if axes is None else torch.squeeze(values, tuple(axes))


@translates("Unsqueeze", static=(1,))
def unsqueeze(values: Tensor, axes: Sequence[int]) -> Tensor:
    """With dimensions of one more, counted in the result."""
    if min(axes) < 0 <= max(axes):
        raise ValueError(f"new axes {tuple(axes)}, counted from both ends")
    for axis in sorted(axes, reverse=min(axes) < 0):
        values = torch.unsqueeze(values, axis)
    return values


@translates("Expand", static=(1,), whole=True)
def expand(values: Tensor, shape: Sequence[int]) -> Tensor:
    """Repeated along dimensions of one, as far as ``shape`` and the values go."""
    common = torch.broadcast_shapes(values.shape, tuple(shape))  # type: ignore[no-untyped-call]
    return values.expand(common)


@translates("Tile", static=(1,))
def tile(values: Tensor, repeats: Sequence[int]) -> Tensor:
    """Repeated along every dimension."""
    return torch.tile(values, tuple(repeats))


@translates("Concat", variadic=True)
def concat(parts: Sequence[Tensor], *, axis: int) -> Tensor:
    """One after the other along a dimension."""
    return torch.cat(list(parts), axis)


@translates("Split", static=(1,), outputs=True)
def split(
    values: Tensor,
    sizes: Sequence[int] | None = None,
    *,
    outputs: int,
    axis: int = 0,
    num_outputs: int | None = None,
) -> Sequence[Tensor]:
    """Parts along a dimension, of given sizes or equal ones."""
    parts = torch.chunk(values, outputs, axis) if sizes is None else torch.split(values, list(sizes), axis)
    return [parts[index] for index in range(outputs)]


@translates("Slice", static=(1, 2, 3, 4))
def slice_of(
    values: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Tensor:
    """A part along some dimensions, forwards."""
    for start, end, axis, step in zip(
        starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True
    ):
        if step < 1:
            raise ValueError(f"a slice in steps of {step}")
        open_end = isinstance(end, int) and end > _FAR
        values = _along(values, axis, slice(start, None if open_end else end, step))
    return values


@translates("Gather")
def gather(values: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Slices at indices, which may count from the end."""
    return _along(values, axis, indices)


def _along(values: Tensor, axis: int, item: Any) -> Tensor:
    """Indexes one dimension."""
    whole = slice(None)
    place = (*[whole] * axis, item) if axis >= 0 else (..., item, *[whole] * (-axis - 1))
    result: Tensor = values[place]
    return result


@translates("GatherElements")
def gather_elements(values: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """Single values at indices that do not count from the end."""
    return torch.gather(values, axis, indices)


@translates("GatherND", whole=True)
def gather_points(values: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """Slices at tuples of indices, the tuples along the last dimension."""
    if batch_dims:
        raise ValueError("tuples of indices for every image of their own")
    return values[tuple(indices.unbind(-1))]


@translates("Trilu", static=(1,))
def triangle(values: Tensor, diagonal: int | None = None, *, upper: int = 1) -> Tensor:
    """The upper or the lower triangle."""
    return (torch.triu if upper else torch.tril)(values, diagonal or 0)


@translates("DepthToSpace")
def depth_to_space(maps: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """Channels that become pixels."""
    if mode != "CRD":
        raise ValueError(f"channels that become pixels in the order {mode}")
    return F.pixel_shuffle(maps, blocksize)


@translates("Range", static=(0, 1, 2), whole=True)
def number_range(start: int, limit: int, step: int) -> Tensor:
    """Numbers from one to another."""
    return torch.arange(start, limit, step)
