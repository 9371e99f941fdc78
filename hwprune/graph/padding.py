"""Padding in a recording that a convolution takes along: exports fold it, so it is no operator either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from hwprune.graph.record import Call, Recording, Value

_PAD = "constant_pad_nd"
_CONVOLUTION = "convolution"


def with_padding_folded(recording: Recording) -> Recording:
    """The recording with paddings by zeros as part of the convolutions that read them.

    Args:
        recording: One forward pass.

    Returns:
        Convolutions that name their padding at the start of every axis, then at the end of every axis, in
        the place of paddings along these axes; a padding stays where something else reads it, too.
    """
    pads = {
        call.outputs[0].index: call
        for call in recording.calls
        if _base(call) == _PAD and _pads_with_zeros(call)
    }
    calls = [_with_all_folded(call, pads) for call in recording.calls]
    for _ in pads:  # a padding of a padding is read by that one
        read = {value.index for call in calls for value in call.inputs}
        read.update(value.index for value in recording.outputs)
        left = [
            call
            for call in calls
            if not (call.outputs and pads.get(call.outputs[0].index) is call) or call.outputs[0].index in read
        ]
        if len(left) == len(calls):
            break
        calls = left
    return replace(recording, calls=tuple(calls))


def _with_all_folded(call: Call, pads: Mapping[int, Call]) -> Call:
    """The call with whatever padding stands before it, if it is a convolution."""
    while (pad := _read_by(call, pads)) is not None:
        whole = _folded(call, pad)
        if whole is None:
            break
        call = whole
    return call


def _read_by(call: Call, pads: Mapping[int, Call]) -> Call | None:
    """The padding that a convolution reads, if it is one and does."""
    source = call.args[0] if _base(call) == _CONVOLUTION else None
    return pads.get(source.index) if isinstance(source, Value) else None


def _base(call: Call) -> str:
    return call.op.split(".")[1]


def _pads_with_zeros(call: Call) -> bool:
    value = call.args[2] if len(call.args) > 2 else call.kwargs.get("value", 0)
    return isinstance(call.args[0], Value) and not value and all(size >= 0 for size in call.args[1])


def _folded(convolution: Call, pad: Call) -> Call | None:
    """The convolution with the padding before it; ``None`` where that goes beyond the axes of its window."""
    weight, padding, transposed = convolution.args[1], list(convolution.args[4]), convolution.args[6]
    axes, sizes = len(weight.shape) - 2, list(pad.args[1])
    if transposed or any(sizes[2 * axes :]):
        return None
    sizes = (sizes + [0] * 2 * axes)[: 2 * axes]
    own = padding * axes if len(padding) == 1 else padding
    before, after = own[:axes], own[axes:] or own[:axes]
    # The last axis comes first in a padding, start and end in turns.
    starts = [size + each for size, each in zip(sizes[-2::-2], before, strict=True)]
    ends = [size + each for size, each in zip(sizes[::-2], after, strict=True)]
    args = (pad.args[0], *convolution.args[1:4], [*starts, *ends], *convolution.args[5:])
    return replace(convolution, args=args)
