"""Operators that look at windows of maps, from what a recording or a file says of them.

Both name their sizes axis by axis: one axis for a signal, two for a map, three for a volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hwprune.operators import Operator

Sizes = Sequence[int]


@dataclass(frozen=True, slots=True)
class Window:
    """What an operator looks at; an axis of which nothing is said has steps of 1 and no padding.

    Attributes:
        kernel: Size along every axis.
        strides: Stride along every axis.
        pads: Padding at the start of every axis and, where it may differ, at the end of every axis.
        dilations: Dilation along every axis.
    """

    kernel: Sizes
    strides: Sizes = ()
    pads: Sizes = ()
    dilations: Sizes = ()


def convolution(
    source: Sizes, result: Sizes, window: Window, *, groups: int = 1, transposed: bool = False
) -> Operator:
    """A convolution.

    Args:
        source: Shape of what it reads: batch, channels, then every axis.
        result: Shape of what it writes.
        window: What it looks at.
        groups: Its groups.
        transposed: Whether it is a transposed convolution.
    """
    kind = "conv_transpose" if transposed else "conv"
    operator = Operator(kind, int(source[1]), int(result[1]), groups=int(groups))
    return _with_window(operator, source, source if transposed else result, window)


def pooling(kind: str, source: Sizes, result: Sizes, window: Window) -> Operator:
    """A pooling over windows.

    Args:
        kind: Its kind on maps.
        source: Shape of what it reads: channels, then every axis, behind a batch or not.
        result: Shape of what it writes.
        window: What it looks at.
    """
    channels = int(source[-len(window.kernel) - 1])
    return _with_window(Operator(kind, channels, channels), source, result, window)


#: Kinds that cost the same wherever their window begins.
_EVENED = frozenset({"conv", "max_pool", "average_pool"})


def _places(source: Sizes, window: Window, pads: Sizes) -> list[int]:
    """Where a window comes to lie along every axis, padded alike at both ends."""
    axes = len(window.kernel)
    strides, dilations = window.strides or (1,) * axes, window.dilations or (1,) * axes
    return [
        (int(size) + 2 * int(pad) - int(dilation) * (int(kernel) - 1) - 1) // int(stride) + 1
        for size, kernel, stride, pad, dilation in zip(
            source, window.kernel, strides, pads, dilations, strict=True
        )
    ]


def _with_window(operator: Operator, source: Sizes, places: Sizes, window: Window) -> Operator:
    """The operator on the map that it reads, or of a kind of its own where a row cannot describe it.

    A signal is a map of one row. What is padded unevenly is as good as padded by the larger side at both
    ends, where the window comes to lie in as many places. What is read in three axes, or has other places
    then, has the sizes of ``places``, rows of all slices together: enough to count its products.
    """
    axes = len(window.kernel)
    kernel = (1, *map(int, window.kernel))[-max(axes, 2) :]
    starts, ends = window.pads[:axes], window.pads[axes:] or window.pads[:axes]
    if list(starts) != list(ends) and operator.kind in _EVENED:
        larger = [max(sides) for sides in zip(starts, ends, strict=True)]
        if _places(source[-axes:], window, larger) == [int(size) for size in places[-axes:]]:
            starts = ends = larger
    if axes > 2 or list(starts) != list(ends):
        return replace(
            operator,
            kind=operator.kind + (f"{axes}d" if axes > 2 else "_uneven_padding"),
            height=math.prod(map(int, places[-axes:-1])),
            width=int(places[-1]),
            kernel_h=math.prod(kernel[:-1]),
            kernel_w=kernel[-1],
        )
    height, width = (1, *map(int, source[-axes:]))[-2:]
    padding = int(starts[0]) if axes == 2 and starts else 0
    strides, dilations = window.strides or (1,), window.dilations or (1,)
    # Along a single row no step is made: what is said of the columns stands for both.
    first = -1 if height == kernel[-2] == 1 and padding == 0 else 0
    return replace(
        operator,
        height=height,
        width=width,
        kernel_h=kernel[-2],
        kernel_w=kernel[-1],
        stride=int(strides[first]),
        padding=padding,
        dilation=int(dilations[first]),
        stride_w=int(strides[-1]),
        padding_w=int(starts[-1]) if starts else 0,
        dilation_w=int(dilations[-1]),
    )
