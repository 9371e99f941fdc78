"""Rules for normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence

from hwprune.graph.flow import Arguments, Flow, Labelled, rule
from hwprune.graph.labels import Dims, Labels


def _affine(flow: Flow, data: Labelled, labels: Labels, dim: int, *tensors: Labelled | None) -> Labels:
    """Ties dimension ``dim`` of scales and shifts, which must be zero for a channel to vanish."""
    for tensor in tensors:
        if tensor is not None:
            if not data.is_weight:
                flow.produce(tensor, tensor.dims[dim])
            labels = flow.meet(labels, tensor.dims[dim], "normalised at fixed width")
    return labels


def _replaced(dims: Dims, dim: int, labels: Labels) -> Dims:
    """``dims`` with one entry changed."""
    return (*dims[:dim], labels, *dims[dim + 1 :])


@rule(
    "aten.native_batch_norm",
    "aten.cudnn_batch_norm",
    "aten.miopen_batch_norm",
    "aten._native_batch_norm_legit",
    "aten._native_batch_norm_legit_no_training",
    "aten._batch_norm_no_update",
    "aten._batch_norm_with_update",
    "aten.batch_norm",
)
def batch_norm(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Normalises each channel by statistics of its own."""
    data: Labelled = arguments["input"]
    for dim, labels in enumerate(data.dims):
        if dim != 1:
            flow.pin(labels, "statistics are taken over it")
    labels = _affine(flow, data, data.dims[1], 0, arguments["weight"], arguments["bias"])
    for name in ("running_mean", "running_var"):
        statistic = arguments.get(name)
        if statistic is not None:
            labels = flow.meet(labels, statistic.dims[0], "normalised at fixed width")
    return [_replaced(data.dims, 1, labels)]


@rule("aten.native_group_norm")
def group_norm(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Normalises groups of channels together; a group leaves whole, and the others do not see it."""
    data: Labelled = arguments["input"]
    flow.pin_all(data.dims[2:], "statistics are taken over it")
    labels = _affine(flow, data, data.dims[1], 0, arguments["weight"], arguments["bias"])
    groups = arguments["group"]
    if groups == 1:
        flow.pin(labels, "a group norm takes statistics over channels")
    elif labels is not None:
        flow.tie(labels.reshape(groups, -1).T, "a group norm takes statistics over channels")
    return [_replaced(data.dims, 1, labels)]


@rule("aten.native_layer_norm", "aten.rms_norm", "aten._fused_rms_norm")
def layer_norm(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Normalises the last dimensions together."""
    data: Labelled = arguments["input"]
    count = len(arguments["normalized_shape"])
    dims = data.dims
    for offset in range(count):
        dim = data.rank - count + offset
        affine = (arguments["weight"], arguments.get("bias"))
        labels = _affine(flow, data, dims[dim], offset, *affine)
        flow.pin(labels, "a layer norm takes statistics over channels")
        dims = _replaced(dims, dim, labels)
    return [dims]
