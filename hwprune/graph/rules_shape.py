"""Rules for operators that rearrange positions without choosing among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hwprune.graph.axes import IntArray
from hwprune.graph.flow import Arguments, Flow, Labelled, rule
from hwprune.graph.labels import Dims, Labels, components


@rule("aten.view", "aten._unsafe_view", "aten.reshape")
def view(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """A new shape over the same positions in the same order."""
    tensor: Labelled = arguments["self"]
    sizes = list(arguments.get("size") or arguments.get("shape") or ())
    inferred = sizes.index(-1) if -1 in sizes else None
    if inferred is not None:
        known = int(np.prod([size for size in sizes if size != -1]))
        sizes[inferred] = int(np.prod(tensor.shape)) // max(known, 1)
    return [_regroup(flow, tensor, tuple(sizes), inferred)]


@rule("aten._reshape_alias")
def reshape_alias(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """A view whose sizes have been worked out already."""
    return [_regroup(flow, arguments["self"], tuple(arguments["size"]), None)]


@rule("aten.unsqueeze")
def unsqueeze(_flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Inserts a dimension of size 1."""
    tensor: Labelled = arguments["self"]
    dim = arguments["dim"] % (tensor.rank + 1)
    return [(*tensor.dims[:dim], None, *tensor.dims[dim:])]


@rule("aten.squeeze")
def squeeze(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Removes dimensions of size 1."""
    tensor: Labelled = arguments["self"]
    given = arguments.get("dim", list(range(tensor.rank)))
    given = given if isinstance(given, list | tuple) else [given]
    gone = {dim % tensor.rank for dim in given if tensor.rank}
    dims: list[Labels] = []
    for dim, (labels, size) in enumerate(zip(tensor.dims, tensor.shape, strict=True)):
        if dim in gone and size == 1:
            flow.pin(labels, "its only channel is squeezed away")
        else:
            dims.append(labels)
    return [tuple(dims)]


def _regroup(flow: Flow, tensor: Labelled, sizes: tuple[int, ...], inferred: int | None) -> Dims:
    """Labels after a view: dimensions are matched in the smallest blocks of equal product."""
    dims: list[Labels] = []
    for sources, targets in _blocks(tensor.shape, sizes):
        block = Labelled(
            tuple(tensor.shape[dim] for dim in sources), tuple(tensor.dims[dim] for dim in sources)
        )
        flexible = targets.index(inferred) if inferred in targets else None
        dims.extend(_regroup_block(flow, block, tuple(sizes[dim] for dim in targets), flexible))
    return tuple(dims)


def _blocks(before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """Splits two shapes of equal product into the smallest runs of dimensions of equal product.

    >>> list(_blocks((2, 6, 5), (2, 3, 2, 5)))
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    left = right = 0
    while left < len(before) or right < len(after):
        sources, targets = [], []
        product_before = product_after = 1
        if left < len(before):
            sources, product_before, left = [left], before[left], left + 1
        if right < len(after):
            targets, product_after, right = [right], after[right], right + 1
        while product_before != product_after:
            if product_before < product_after:
                sources.append(left)
                product_before, left = product_before * before[left], left + 1
            else:
                targets.append(right)
                product_after, right = product_after * after[right], right + 1
        yield sources, targets


def _regroup_block(flow: Flow, block: Labelled, sizes: tuple[int, ...], flexible: int | None) -> Dims:
    """Labels of one run of dimensions seen as another run of equal product."""
    nothing: Dims = (None,) * len(sizes)
    labelled = [dim for dim, labels in enumerate(block.dims) if labels is not None]
    if not labelled:
        return nothing
    wide = [dim for dim in labelled if block.shape[dim] > 1]
    if len(wide) > 1 or (not wide and len(sizes) != 1):
        flow.pin_all(block.dims, "a view merges it with another channel dimension")
        return nothing
    chosen = (wide or labelled)[0]
    for dim in labelled:
        if dim != chosen:
            flow.pin(block.dims[dim], "its only channel is merged with others")
    labels = block.dims[chosen]
    assert labels is not None
    along = [1] * block.rank
    along[chosen] = -1
    positions = np.broadcast_to(labels.reshape(along), block.shape).reshape(sizes)
    best = _carrier(positions, flexible)
    rows = np.moveaxis(positions, best, -1).reshape(-1, sizes[best])
    kept = flow.tie(np.unique(rows, axis=0), "a view mixes it with something of fixed width")
    return (*nothing[:best], kept, *nothing[best + 1 :])


def _carrier(positions: IntArray, flexible: int | None) -> int:
    """The dimension that the channels run along after a view that splits them.

    A dimension whose size the caller left open (-1) can become narrower. Otherwise the one that keeps most
    channels apart, the last among equals: the width of heads rather than their number.
    """
    if flexible is not None and positions.shape[flexible] > 1:
        return flexible
    apart = [_channels_along(positions, dim) for dim in range(positions.ndim)]
    return max(range(positions.ndim), key=lambda dim: (apart[dim], dim))


def _channels_along(positions: IntArray, dim: int) -> int:
    """How many channels are left when each index along ``dim`` is one."""
    rows = np.moveaxis(positions, dim, -1).reshape(-1, positions.shape[dim])
    found, numbered = np.unique(rows, return_inverse=True)
    numbered = numbered.reshape(rows.shape)
    first = np.broadcast_to(numbered[:1], rows.shape)
    root = components(len(found), first.ravel(), numbered.ravel())
    return len(np.unique(root))


@rule("aten.t", "aten.numpy_T")
def transpose_matrix(_flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """All dimensions reversed."""
    return [arguments["self"].dims[::-1]]


@rule("aten.transpose")
def transpose(_flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Two dimensions exchanged."""
    dims = list(arguments["self"].dims)
    first, second = arguments["dim0"], arguments["dim1"]
    if dims:
        dims[first], dims[second] = dims[second], dims[first]
    return [tuple(dims)]


@rule("aten.permute")
def permute(_flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Dimensions in another order."""
    dims = arguments["self"].dims
    return [tuple(dims[dim] for dim in arguments["dims"])]


@rule("aten.expand")
def expand(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Dimensions of size 1 repeated, new ones put in front."""
    tensor: Labelled = arguments["self"]
    sizes = arguments["size"]
    dims: list[Labels] = [None] * (len(sizes) - tensor.rank)
    for labels, before, after in zip(tensor.dims, tensor.shape, sizes[len(dims) :], strict=True):
        if after in (-1, before):
            dims.append(labels)
        else:
            flow.pin(labels, "its only channel is repeated")
            dims.append(None)
    return [tuple(dims)]


@rule("aten.repeat")
def repeat(_flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Every dimension tiled."""
    tensor: Labelled = arguments["self"]
    repeats = arguments["repeats"]
    dims = (None,) * (len(repeats) - tensor.rank) + tensor.dims
    return [
        tuple(
            None if labels is None else np.tile(labels, times)
            for labels, times in zip(dims, repeats, strict=True)
        )
    ]


@rule("aten.flip")
def flip(_flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Dimensions read backwards."""
    tensor: Labelled = arguments["self"]
    flipped = {dim % tensor.rank for dim in arguments["dims"]}
    return [
        tuple(
            labels[::-1] if dim in flipped and labels is not None else labels
            for dim, labels in enumerate(tensor.dims)
        )
    ]


@rule("aten.roll")
def roll(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Dimensions rotated by literal amounts."""
    tensor: Labelled = arguments["self"]
    rolled = {dim % tensor.rank for dim in arguments["dims"]} or set(range(tensor.rank))
    for dim in rolled:
        flow.pin(tensor.dims[dim], "it is rotated by a fixed amount")
    return [tensor.dims]


@rule("aten.pixel_shuffle")
def pixel_shuffle(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Blocks of ``factor ** 2`` channels become squares of pixels of one channel."""
    *batch, channels, height, width = arguments["self"].dims
    flow.pin_all((height, width), "pixels are interleaved along it")
    if channels is not None:
        factor = arguments["upscale_factor"] ** 2
        channels = flow.tie(channels.reshape(-1, factor).T, "pixels are made of fixed channels")
    return [(*batch, channels, None, None)]


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Squares of pixels of one channel become blocks of ``factor ** 2`` channels."""
    *batch, channels, height, width = arguments["self"].dims
    flow.pin_all((height, width), "pixels are interleaved along it")
    if channels is not None:
        channels = np.repeat(channels, arguments["downscale_factor"] ** 2)
    return [(*batch, channels, None, None)]


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Channels of equal groups are interleaved."""
    tensor: Labelled = arguments["self"]
    labels = tensor.dims[1]
    if labels is not None:
        why = "the groups of a channel shuffle must stay equal"
        common = flow.tie(labels.reshape(arguments["groups"], -1), why)
        labels = None if common is None else np.repeat(common, arguments["groups"])
    return [(tensor.dims[0], labels, *tensor.dims[2:])]
