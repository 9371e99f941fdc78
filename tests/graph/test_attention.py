"""Axes inside attention."""

import torch
from torch import nn
from torch.nn import functional

from hwprune.graph.coupling import find_axes

TOKENS = torch.zeros(2, 5, 6)


class Attention(nn.Module):
    """Multi-head attention with 3 heads of width 4; ``split`` says how heads are made."""

    def __init__(self, split, *, fused=False, scale=None):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 12) for _ in range(3))
        self.out = nn.Linear(12, 6)
        self.split, self.fused, self.scale = split, fused, scale

    def forward(self, x):
        query, key, value = (
            layer(x).reshape(self.split).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        if self.fused:
            mixed = functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
        else:
            mixed = (query @ key.transpose(-1, -2) * 0.5).softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


def axes_of(net):
    return {axis.name: axis for axis in find_axes(net, TOKENS)}


def test_width_of_heads():
    axes = axes_of(Attention((2, 5, 3, 4)))
    assert list(axes) == ["query", "value", "out"]
    assert [axes[name].width for name in ("query", "value")] == [4, 4]
    assert axes["query"].slices[0].channels.tolist() == [0, 1, 2, 3] * 3
    assert {part.tensor for part in axes["query"].slices} == {
        "query.weight",
        "query.bias",
        "key.weight",
        "key.bias",
    }
    assert {part.tensor for part in axes["value"].consumers} == {"out.weight"}
    assert axes["query"].pinned is axes["value"].pinned is None


def test_number_of_heads_where_the_view_leaves_it_open():
    axes = axes_of(Attention((2, 5, -1, 4)))
    assert list(axes) == ["query", "out"]
    assert axes["query"].width == 3
    assert axes["query"].slices[0].channels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert axes["query"].consumers[0].channels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_fused_attention_scales_by_the_width_of_its_heads():
    axes = axes_of(Attention((2, 5, 3, 4), fused=True))
    assert axes["query"].pinned == "the scale of the attention follows from the width of its heads"
    assert axes["value"].pinned is None
    assert axes_of(Attention((2, 5, 3, 4), fused=True, scale=0.5))["query"].pinned is None


def test_heads_of_fused_attention_may_leave():
    axes = axes_of(Attention((2, 5, -1, 4), fused=True))
    assert axes["query"].pinned is None
    assert axes["query"].width == 3


def test_fused_projection_and_pytorch_layers():
    layer = nn.TransformerEncoderLayer(6, 2, 10, batch_first=True).eval()
    axes = {axis.name: axis for axis in find_axes(layer, TOKENS)}
    assert axes["linear1"].pinned is None
    assert {part.tensor for part in axes["linear1"].slices} == {
        "linear1.weight",
        "linear1.bias",
        "linear2.weight",
    }
    assert axes["self_attn"].width == 3
    assert axes["self_attn"].pinned is not None
    assert torch.backends.mha.get_fastpath_enabled()


def test_grouped_queries_share_the_heads_of_their_keys():
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(6, 8)
            self.out = nn.Linear(16, 6)

        def forward(self, x):
            query = self.query(x).view(2, 5, -1, 4).transpose(1, 2)
            key = self.key(x).view(2, 5, -1, 4).transpose(1, 2).repeat_interleave(2, 1)
            value = self.value(x).view(2, 5, -1, 4).transpose(1, 2).repeat_interleave(2, 1)
            mixed = (query @ key.transpose(-1, -2)).softmax(-1) @ value
            return self.out(mixed.transpose(1, 2).reshape(2, 5, -1))

    axes = axes_of(Grouped())
    assert list(axes) == ["query", "out"]
    assert axes["query"].width == 2
    by_tensor = {(part.tensor, part.dim): part.channels.tolist() for part in axes["query"].slices}
    assert by_tensor["query.weight", 0] == [0] * 8 + [1] * 8
    assert by_tensor["key.weight", 0] == by_tensor["value.bias", 0] == [0] * 4 + [1] * 4


def test_fused_attention_with_shared_keys():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(6, 8)
            self.out = nn.Linear(16, 6)

        def forward(self, x):
            query, key, value = (
                layer(x).view(2, 5, -1, 4).transpose(1, 2) for layer in (self.query, self.key, self.value)
            )
            mixed = functional.scaled_dot_product_attention(query, key, value, enable_gqa=True)
            return self.out(mixed.transpose(1, 2).flatten(2))

    axis = axes_of(Fused())["query"]
    assert axis.pinned is None
    assert axis.slices[0].channels.tolist() == [0] * 8 + [1] * 8
    assert {part.tensor for part in axis.slices} >= {"key.weight", "value.weight", "out.weight"}
