"""Rules for matrix products, attention, convolutions and look-ups: where channels come into being."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwprune.graph.broadcast import combine
from hwprune.graph.flow import Arguments, Flow, Labelled, rule
from hwprune.graph.labels import Dims, Labels

_FIXED_SUM = "summed over together with something of fixed width"


def _product(flow: Flow, left: Labelled, right: Labelled) -> Labelled:
    """``left @ right`` for tensors of at least two dimensions, as :func:`torch.matmul` broadcasts them."""
    flow.meet(left.dims[-1], right.dims[-2], _FIXED_SUM)
    batch_left = Labelled(left.shape[:-2], left.dims[:-2], left.source)
    batch_right = Labelled(right.shape[:-2], right.dims[:-2], right.source)
    batch = combine(flow, [batch_left, batch_right], "multiplied", additive=False)
    rows, columns = left.dims[-2], right.dims[-1]
    if left.is_weight and not right.is_weight:
        flow.produce(left, rows)
    if right.is_weight and not left.is_weight:
        flow.produce(right, columns)
    shape = (*np.broadcast_shapes(left.shape[:-2], right.shape[:-2]), left.shape[-2], right.shape[-1])
    both_weights = left.is_weight and right.is_weight
    return Labelled(shape, (*batch, rows, columns), left.source if both_weights else "activation")


@rule("aten.mm", "aten.bmm")
def matrix_product(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """``self @ mat2``."""
    return [_product(flow, arguments["self"], arguments["mat2"]).dims]


@rule("aten.addmm")
def biased_matrix_product(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """``self + mat1 @ mat2``."""
    product = _product(flow, arguments["mat1"], arguments["mat2"])
    return [combine(flow, [product, arguments["self"]], "added", additive=True)]


@rule("aten.baddbmm")
def biased_batch_product(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """``self + batch1 @ batch2``."""
    product = _product(flow, arguments["batch1"], arguments["batch2"])
    return [combine(flow, [product, arguments["self"]], "added", additive=True)]


@rule("aten.mv")
def matrix_vector_product(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """``self @ vec``."""
    matrix, vector = arguments["self"], arguments["vec"]
    column = Labelled((*vector.shape, 1), (*vector.dims, None), vector.source)
    return [_product(flow, matrix, column).dims[:-1]]


@rule("aten.dot", "aten.vdot")
def inner_product(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """``sum(self * tensor)``; one of the two operators calls it ``other``."""
    left, right = arguments["self"], arguments["tensor" if "tensor" in arguments else "other"]
    flow.meet(left.dims[0], right.dims[0], _FIXED_SUM)
    return [()]


@rule("aten.linear")
def linear(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """``input @ weight.T + bias``."""
    data, weight, bias = arguments["input"], arguments["weight"], arguments["bias"]
    flow.meet(data.dims[-1], weight.dims[1], _FIXED_SUM)
    if not data.is_weight:
        flow.produce(weight, weight.dims[0])
    product = Labelled((*data.shape[:-1], weight.shape[0]), (*data.dims[:-1], weight.dims[0]))
    if bias is None:
        return [product.dims]
    return [combine(flow, [product, bias], "added", additive=True)]


@rule("aten.embedding")
def embedding(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Rows of ``weight``."""
    weight, indices = arguments["weight"], arguments["indices"]
    flow.pin(weight.dims[0], "its rows are looked up by number")
    if not indices.is_weight:
        flow.produce(weight, weight.dims[1])
    return [(*indices.dims, weight.dims[1])]


@rule(
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
)
def attention(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """``softmax(query @ key.T * scale) @ value``, each of shape (batch, heads, tokens, width)."""
    query, key, value = arguments["query"], arguments["key"], arguments["value"]
    width = flow.meet(query.dims[-1], key.dims[-1], _FIXED_SUM)
    if arguments["scale"] is None:
        flow.pin(width, "the scale of the attention follows from the width of its heads")
    tokens = flow.meet(key.dims[-2], value.dims[-2], "softmax over it")
    flow.pin(tokens, "softmax over it")
    heads = [_shared_heads(part, query.shape[-3]) for part in (query, key, value)]
    batch = combine(flow, heads, "heads are matched", additive=False)
    for name in ("attn_mask", "attn_bias"):
        mask = arguments.get(name)
        if mask is not None:
            flow.pin_all(mask.dims, "it masks an attention")
            flow.pin_all(batch, "an attention mask may have a row for it")
    return [(*batch, query.dims[-2], value.dims[-1])]


def _shared_heads(tensor: Labelled, heads: int) -> Labelled:
    """The dimensions before tokens and width, each head repeated where several queries share it."""
    *batch, own = tensor.shape[:-2]
    labels = tensor.dims[-3]
    if labels is not None and own != heads:
        labels = np.repeat(labels, heads // own)
    return Labelled((*batch, heads), (*tensor.dims[:-3], labels))


def _per_group(labels: Labels, groups: int) -> Labels:
    """Labels of one group, repeated for all."""
    return None if labels is None else np.tile(labels, groups)


@rule("aten.convolution", "aten.cudnn_convolution", "aten.mkldnn_convolution")
def convolution(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """A convolution or its transpose, over any number of spatial dimensions."""
    data, weight, bias = arguments["input"], arguments["weight"], arguments.get("bias")
    groups, transposed = arguments["groups"], arguments.get("transposed", False)
    # Without a batch dimension PyTorch adds one before it gets here.
    batch, channels, *spatial = data.dims
    flow.pin_all(spatial, "a convolution slides along it")
    reading, writing = (0, 1) if transposed else (1, 0)
    if groups == 1:
        flow.meet(channels, weight.dims[reading], "read next to something of fixed width")
        produced = weight.dims[writing]
    elif groups == data.shape[1] and (weight.shape[1] == 1 or not transposed):
        writing = 0
        produced = _depthwise(flow, channels, weight)
    else:
        produced = _grouped(flow, channels, weight, groups, transposed)
    if not data.is_weight:
        flow.produce(weight, weight.dims[writing])
        if bias is not None:
            flow.produce(bias, bias.dims[0])
    if bias is not None:
        produced = flow.meet(produced, bias.dims[0], "a bias of fixed width is added")
    return [(batch, produced, *(None for _ in spatial))]


def _depthwise(flow: Flow, channels: Labels, weight: Labelled) -> Labels:
    """Each input channel makes its own output channels, which come and go with it."""
    if channels is None:
        flow.pin(weight.dims[0], "convolved one by one at fixed width")
        return None
    multiplier = weight.shape[0] // len(channels)
    repeated = np.repeat(channels, multiplier)
    return flow.meet(weight.dims[0], repeated, "convolved one by one at fixed width")


def _grouped(flow: Flow, channels: Labels, weight: Labelled, groups: int, transposed: bool) -> Labels:
    """The groups must stay equal, so the same position leaves all of them together."""
    why = "the groups of a convolution must stay equal"
    if transposed:
        read = weight.dims[0]
        if read is not None:
            read = _per_group(flow.tie(read.reshape(groups, -1), why), groups)
        flow.meet(channels, read, why)
        return _per_group(weight.dims[1], groups)
    flow.meet(channels, _per_group(weight.dims[1], groups), why)
    written = weight.dims[0]
    if written is None:
        return None
    return _per_group(flow.tie(written.reshape(groups, -1), why), groups)
