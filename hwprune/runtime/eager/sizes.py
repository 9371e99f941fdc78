"""Arithmetic of the sizes of tensors: it is done with numbers, not with tensors, as in a network's own code.

Sizes are arrays of objects: integers where they are known before the network runs,
proxies where they are not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import fx

Sizes = npt.NDArray[Any]


def sizes_of(values: fx.Proxy, known: Sequence[int | None], start: int = 0, end: int | None = None) -> Sizes:
    """The shape of a tensor, or a part of it.

    Args:
        values: The tensor.
        known: Its sizes, ``None`` for open ones.
        start: The first dimension.
        end: The one behind the last.
    """
    axes = range(len(known))[start:end]
    sizes = np.empty(len(axes), dtype=object)
    for place, axis in enumerate(axes):
        size = known[axis]
        sizes[place] = values.size(axis) if size is None else size
    return sizes


def _boxed(value: Any) -> Sizes:
    """The array, or an array of no dimensions around what was taken out of one."""
    if isinstance(value, np.ndarray):
        return value
    box = np.empty((), dtype=object)
    box[()] = value
    return box


def _slice(
    sizes: Sizes, starts: Sizes, ends: Sizes, axes: Sizes | None = None, steps: Sizes | None = None
) -> Sizes:
    """A part of a list of sizes."""
    step = None if steps is None else int(steps[0])
    return sizes[int(starts[0]) : int(ends[0]) : step]


def _squeezed(sizes: Sizes, axes: Sizes | None = None) -> Sizes:
    return _boxed(sizes.squeeze() if axes is None else sizes.squeeze(tuple(axes.tolist())))


def _elementwise(compute: Callable[[Any, Any], Any]) -> Callable[[Sizes, Sizes], Sizes]:
    def call(left: Sizes, right: Sizes) -> Sizes:
        pairs = np.broadcast(left, right)
        result = np.empty(pairs.shape, dtype=object)
        result.reshape(-1)[:] = [compute(first, second) for first, second in pairs]
        return result

    return call


def _same(sizes: Sizes, to: int = 0) -> Sizes:
    return sizes


#: ONNX operator to what it does with sizes; attributes come by name.
SIZES: dict[str, Callable[..., Sizes]] = {
    "Add": _elementwise(operator.add),
    "Cast": _same,
    "Concat": lambda *parts, axis: np.concatenate(parts, axis),
    "Div": _elementwise(operator.floordiv),
    "Gather": lambda sizes, indices, axis=0: _boxed(np.take(sizes, indices.astype(np.int64), axis)),
    "Identity": _same,
    "Mul": _elementwise(operator.mul),
    "Slice": _slice,
    "Squeeze": _squeezed,
    "Sub": _elementwise(operator.sub),
    "Unsqueeze": lambda sizes, axes: np.expand_dims(sizes, tuple(axes.tolist())),
}
