"""Rules for operators that put tensors together or take parts of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwprune.graph.flow import Arguments, Flow, Labelled, rule
from hwprune.graph.labels import FIXED, Dims, Labels

_UNEVEN = "a part of fixed width is taken out of it"


def _with(dims: Dims, dim: int, labels: Labels) -> Dims:
    """``dims`` with one entry changed."""
    return (*dims[:dim], labels, *dims[dim + 1 :])


@rule("aten.cat")
def concatenate(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Tensors one after the other along one dimension."""
    # An empty vector may stand among tensors of any rank, for historical reasons.
    tensors = [tensor for tensor in arguments["tensors"] if tensor.shape != (0,)]
    if not tensors:
        return []
    dim = arguments["dim"] % tensors[0].rank
    pieces = [
        np.full(tensor.shape[dim], FIXED) if tensor.dims[dim] is None else tensor.dims[dim]
        for tensor in tensors
    ]
    joined = np.concatenate(pieces)
    common = _matched(flow, tensors, skip=dim)
    return [_with(common, dim, joined if (joined >= 0).any() else None)]


@rule("aten.stack")
def stack(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Tensors side by side along a new dimension."""
    tensors = arguments["tensors"]
    dim = arguments["dim"] % (tensors[0].rank + 1)
    common = _matched(flow, tensors, skip=None)
    return [(*common[:dim], None, *common[dim:])]


def _matched(flow: Flow, tensors: Sequence[Labelled], skip: int | None) -> Dims:
    """Labels of tensors that agree along all dimensions but one; parameters among them bring data."""
    mixed = not all(tensor.is_weight for tensor in tensors)
    dims = tensors[0].dims
    for tensor in tensors:
        if mixed:
            others = (labels for dim, labels in enumerate(tensor.dims) if dim != skip)
            flow.produce(tensor, *others)
        for dim in range(tensor.rank):
            if dim != skip:
                dims = _with(dims, dim, flow.meet(dims[dim], tensor.dims[dim], "put side by side"))
    return dims


@rule("aten.split", "aten.unsafe_split", "aten.split_with_sizes", "aten.unsafe_split_with_sizes")
def split(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Consecutive parts along one dimension."""
    tensor: Labelled = arguments["self"]
    dim = arguments["dim"] % tensor.rank
    size = tensor.shape[dim]
    sizes = arguments.get("split_sizes", arguments.get("split_size"))
    if isinstance(sizes, int):
        sizes = [min(sizes, size - start) for start in range(0, size, max(sizes, 1))]
    labels = tensor.dims[dim]
    if labels is None:
        return [tensor.dims] * len(sizes)
    if len(set(sizes)) == 1:
        # Equal parts are usually asked for by number; they must stay equal.
        return [_with(tensor.dims, dim, flow.tie(labels.reshape(len(sizes), -1), _UNEVEN))] * len(sizes)
    flow.pin(labels, "it is split into parts of fixed width")
    ends = np.cumsum(sizes)[:-1]
    return [_with(tensor.dims, dim, part) for part in np.split(labels, ends)]


@rule("aten.slice")
def take_slice(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """A range of positions along one dimension."""
    tensor: Labelled = arguments["self"]
    dim = arguments["dim"] % tensor.rank
    labels = tensor.dims[dim]
    if labels is None:
        return [tensor.dims]
    size = tensor.shape[dim]
    start, end, step = slice(arguments["start"], arguments["end"], arguments["step"]).indices(size)
    width = end - start
    if step == 1 and 0 < width < size and size % width == 0 and start % width == 0:
        # An equal part, as from a chunk written by hand: its bounds may follow the width.
        return [_with(tensor.dims, dim, flow.tie(labels.reshape(-1, width), _UNEVEN))]
    if width < size or step != 1:
        flow.pin(labels, _UNEVEN)
    return [_with(tensor.dims, dim, labels[start:end:step])]


@rule("aten.select")
def select(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """One position along one dimension."""
    tensor: Labelled = arguments["self"]
    dim = arguments["dim"] % tensor.rank
    flow.pin(tensor.dims[dim], "a channel is picked by number")
    return [tensor.dims[:dim] + tensor.dims[dim + 1 :]]


@rule("aten.unbind")
def unbind(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Every position along one dimension by itself."""
    tensor: Labelled = arguments["self"]
    dim = arguments["dim"] % tensor.rank
    flow.pin(tensor.dims[dim], "its channels are taken apart by number")
    return [tensor.dims[:dim] + tensor.dims[dim + 1 :]] * tensor.shape[dim]


@rule("aten.index")
def index(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Positions picked by tensors of indices, or by masks."""
    tensor: Labelled = arguments["self"]
    indices: list[Labelled | None] = list(arguments["indices"])
    indices += [None] * (tensor.rank - len(indices))
    given = [dim for dim, each in enumerate(indices) if each is not None]
    shapes = [each.shape for each in indices if each is not None]
    for dim in given:
        flow.pin(tensor.dims[dim], "its channels are picked by number")
    for each in indices:
        if each is not None:
            flow.pin_all(each.dims, "it picks positions of another tensor")
    # Indices that are not next to each other put their dimensions in front.
    first = given[0] if given[-1] - given[0] + 1 == len(given) else 0
    rest = [labels for dim, labels in enumerate(tensor.dims) if dim not in given]
    picked = (None,) * len(np.broadcast_shapes(*shapes))
    return [(*rest[:first], *picked, *rest[first:])]


@rule("aten.index_select", "aten.gather")
def pick(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Positions picked along one dimension."""
    tensor: Labelled = arguments["self"]
    dim = arguments["dim"] % tensor.rank
    flow.pin(tensor.dims[dim], "its channels are picked by number")
    flow.pin_all(arguments["index"].dims, "it picks positions of another tensor")
    if arguments["index"].shape != tensor.shape and "sparse_grad" in arguments:
        flow.pin_all(tensor.dims, "positions are picked by number")
        return [(None,) * tensor.rank]
    return [_with(tensor.dims, dim, None)]


@rule("aten.constant_pad_nd")
def pad(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Constants put around a tensor; a negative number crops."""
    tensor: Labelled = arguments["self"]
    amounts = arguments["pad"]
    dims = tensor.dims
    for offset in range(len(amounts) // 2):
        dim = tensor.rank - 1 - offset
        labels = dims[dim]
        if labels is None:
            continue
        before, after = amounts[2 * offset], amounts[2 * offset + 1]
        if min(before, after) < 0 or arguments["value"] != 0:
            flow.pin(labels, "it is cropped or padded with a constant")
        kept = labels[max(-before, 0) : len(labels) - max(-after, 0)]
        padded = np.pad(kept, (max(before, 0), max(after, 0)), constant_values=FIXED)
        dims = _with(dims, dim, padded)
    return [dims]
