"""Convolutions with dead kernel positions as smaller layers: cropped, or lowered to a gather and a product.

A position is an input channel and a place in the kernel; it is dead where the weights of all filters are
zero. Both layers compute what the convolution computes, on maps of any size, and are trained and exported as
it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from hwprune.graph.axes import IntArray

#: Zeros at the left, right, top and bottom, as ``torch.nn.functional.pad`` takes them; negative where rows or
#: columns are dropped.
Pads = tuple[int, int, int, int]
#: Rows and columns of a kernel: the first and the one after the last.
Box = tuple[int, int, int, int]


class CroppedConvolution(nn.Conv2d):
    """A convolution over the living channels and the smallest box around the living places of the kernel.

    Dead positions inside are kept; they may live again in further training.

    Args:
        like: The convolution that is replaced, its padding zeros, ``groups=1``; not touched.
        positions: Living positions of ``like.weight[0].flatten()``, ascending.
    """

    def __init__(self, like: nn.Conv2d, positions: IntArray) -> None:
        shape = like.weight.shape
        channels, box = channels_of(shape, positions), box_of(shape, positions)
        top, bottom, left, right = box
        pads = _pads_around(like, box)
        even = pads[0] == pads[1] >= 0 and pads[2] == pads[3] >= 0
        super().__init__(
            channels.size,
            like.out_channels,
            (bottom - top, right - left),
            stride=cast("tuple[int, int]", like.stride),
            padding=(pads[2], pads[0]) if even else 0,
            dilation=cast("tuple[int, int]", like.dilation),
            bias=like.bias is not None,
            device="meta",  # nothing is drawn at random for weights that are there already
        )
        self.pads = None if even else pads
        index = None if channels.size == like.in_channels else channels
        _take(self, like, like.weight.detach()[:, channels, top:bottom, left:right])
        self.channels: Tensor | None
        self.register_buffer("channels", _on_device(index, like), persistent=False)

    def forward(self, data: Tensor) -> Tensor:
        """Convolves maps of shape ``(batch, inputs, rows, columns)``."""
        if self.channels is not None:
            data = data.index_select(1, self.channels)
        return super().forward(data if self.pads is None else F.pad(data, self.pads))


class LoweredConvolution(nn.Module):
    """A gather of the living values of every patch, and one product with the matrix of filters.

    The map is copied once for every living column of the kernel, shifted and strided as that column sees it;
    the gather then takes whole rows of these copies, because copying single values would take longer than
    multiplying them. The product is a 1x1 convolution, into which runtimes fold bias, norm and activation.

    Args:
        like: The convolution that is replaced, its padding zeros, ``groups=1``; not touched.
        positions: Living positions of ``like.weight[0].flatten()``, ascending.

    Attributes:
        weight: Shape ``(outputs, positions, 1, 1)``.
        bias: Shape ``(outputs,)``, or ``None``.
    """

    weight: Tensor
    bias: Tensor | None
    channels: Tensor | None
    slots: Tensor
    row_shifts: Tensor

    def __init__(self, like: nn.Conv2d, positions: IntArray) -> None:
        super().__init__()
        shape = like.weight.shape
        box = box_of(shape, positions)
        channels, rows, columns = _unravelled(shape, positions)
        read, channel_slots = np.unique(channels, return_inverse=True)
        places, column_slots = np.unique(columns, return_inverse=True)
        self.stride = cast("tuple[int, int]", like.stride)
        pads = _pads_around(like, box)
        self.pads = pads if any(pads) else None
        row_step, column_step = cast("tuple[int, int]", like.dilation)
        self.column_shifts = tuple(int(place - box[2]) * column_step for place in places)
        #: How far the kernel reaches beyond its first row and column.
        self.reach = ((box[1] - 1 - box[0]) * row_step, (box[3] - 1 - box[2]) * column_step)
        indices = {
            "channels": None if read.size == like.in_channels else read,
            "slots": column_slots * read.size + channel_slots,
            "row_shifts": (rows - box[0]) * row_step,
        }
        for name, index in indices.items():
            self.register_buffer(name, _on_device(index, like), persistent=False)
        _take(self, like, like.weight.detach().flatten(1)[:, positions, None, None])

    def forward(self, data: Tensor) -> Tensor:
        """Convolves maps of shape ``(batch, inputs, rows, columns)``."""
        if self.channels is not None:
            data = data.index_select(1, self.channels)
        if self.pads is not None:
            data = F.pad(data, self.pads)
        rows = data.shape[2]
        height, width = (
            (size - reach - 1) // stride + 1
            for size, reach, stride in zip(data.shape[2:], self.reach, self.stride, strict=True)
        )
        last = (width - 1) * self.stride[1]
        copies = [data[..., shift : shift + last + 1 : self.stride[1]] for shift in self.column_shifts]
        steps = torch.arange(height, device=data.device) * self.stride[0]
        wanted = (self.slots * rows + self.row_shifts).unsqueeze(1) + steps
        gathered = torch.cat(copies, 1).flatten(1, 2).index_select(1, wanted.flatten())
        return F.conv2d(torch.unflatten(gathered, 1, (self.slots.numel(), height)), self.weight, self.bias)

    def extra_repr(self) -> str:
        """Sizes, for whoever prints the network."""
        outputs, positions = self.weight.shape[:2]
        return f"{positions} positions, {outputs}, stride={self.stride}"


def channels_of(shape: Sequence[int], positions: IntArray) -> IntArray:
    """Input channels with a living position, ascending.

    Args:
        shape: Of the weight: outputs, inputs, rows, columns.
        positions: Living positions of its first filter, flattened.

    >>> channels_of((8, 3, 3, 3), np.array([0, 4, 20]))
    array([0, 2])
    """
    return np.unique(_unravelled(shape, positions)[0])


def box_of(shape: Sequence[int], positions: IntArray) -> Box:
    """The smallest box around the places of the kernel that live in some channel.

    Args:
        shape: Of the weight: outputs, inputs, rows, columns.
        positions: Living positions of its first filter, flattened.

    >>> box_of((8, 3, 3, 3), np.array([3, 4, 13, 23]))
    (1, 2, 0, 3)
    """
    _channels, rows, columns = _unravelled(shape, positions)
    return int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1


def _unravelled(shape: Sequence[int], positions: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Channel, row and column of every position."""
    channels, rows, columns = np.unravel_index(positions, tuple(shape[1:]))
    return channels.astype(np.int64), rows.astype(np.int64), columns.astype(np.int64)


def _pads_around(like: nn.Conv2d, box: Box) -> Pads:
    """What has to stand around the input so that the places in the box meet what they met before."""
    sides = []
    for axis, (first, stop) in enumerate((box[:2], box[2:])):
        before, after = _padding(like, axis)
        size, step = like.weight.shape[2 + axis], like.dilation[axis]
        sides += [before - first * step, after - (size - stop) * step]
    top, bottom, left, right = sides
    return left, right, top, bottom


def _padding(like: nn.Conv2d, axis: int) -> tuple[int, int]:
    """Zeros before and after the map along one axis."""
    if like.padding == "valid":
        return 0, 0
    if like.padding == "same":
        whole = like.dilation[axis] * (like.weight.shape[2 + axis] - 1)
        return whole // 2, whole - whole // 2
    both = int(like.padding[axis])
    return both, both


def _take(module: nn.Module, like: nn.Conv2d, weight: Tensor) -> None:
    """Gives a layer its parameters and mode from the convolution that it replaces."""
    bias = like.bias
    module.register_parameter("weight", nn.Parameter(weight.clone(), like.weight.requires_grad))
    own = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
    module.register_parameter("bias", own)
    module.train(like.training)


def _on_device(index: IntArray | None, like: nn.Conv2d) -> Tensor | None:
    return None if index is None else torch.from_numpy(index).to(like.weight.device)
