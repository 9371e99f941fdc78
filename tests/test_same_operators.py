"""A network and the file that it is exported to consist of the same operators."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwprune.device.kinds import KINDS, describe
from hwprune.errors import InputError
from hwprune.graph.trace import trace_operators
from hwprune.runtime.export import export
from hwprune.runtime.onnx_graph import read_operators


class Activations(nn.Module):
    """Every activation, none of them behind a convolution that would take it up."""

    def forward(self, maps: Tensor) -> Tensor:
        maps = functional.gelu(functional.silu(functional.hardswish(maps)))
        maps = torch.tanh(functional.leaky_relu(functional.elu(maps)))
        return torch.relu(torch.sigmoid(functional.relu6(maps)) - functional.hardsigmoid(maps) / 2)


class Norms(nn.Module):
    """Norms that no convolution takes up, with parameters that no export drops."""

    def __init__(self) -> None:
        super().__init__()
        self.batch, self.group, self.plain = (
            nn.BatchNorm2d(8),
            nn.GroupNorm(4, 8),
            nn.GroupNorm(2, 8, affine=False),
        )
        self.instance, self.layer = nn.InstanceNorm2d(8, affine=True), nn.LayerNorm(8)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, 1.1, 2.0)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.plain(self.group(functional.silu(self.batch(maps))))
        return self.layer(self.instance(maps).permute(0, 2, 3, 1))


class Maps(nn.Module):
    """What works on maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wider = nn.Conv2d(8, 6, 3, 2, 1), nn.ConvTranspose2d(6, 8, 2, 2)
        self.gated, self.last = nn.Conv2d(8, 16, 1), nn.Conv2d(24, 8, 1)

    def forward(self, maps: Tensor) -> Tensor:
        wide = functional.pad(self.wider(functional.relu(self.stem(maps))), (1, 1, 1, 1))
        value, gate = self.gated(functional.avg_pool2d(functional.max_pool2d(wide, 2), 2)).chunk(2, 1)
        small = value * gate.softmax(1)
        parts = (
            functional.interpolate(small, scale_factor=2),
            functional.interpolate(small, size=(4, 4), mode="bilinear", align_corners=False),
        )
        return self.last(torch.cat([*parts, maps[:, :, :4, :4]], 1)).mean((2, 3))


class Padded(nn.Module):
    """Padding that convolutions take along, evenly and unevenly, and padding that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.uneven = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, 2)
        self.more, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, maps: Tensor) -> Tensor:
        maps = functional.relu(self.even(functional.pad(maps, (1, 1, 1, 1))))
        maps = functional.relu(self.uneven(functional.pad(maps, (0, 1, 0, 1))))
        maps = functional.relu(self.more(functional.pad(maps, (1, 1, 2, 2))))
        return self.last(functional.pad(maps, (1, 1), value=1.0))


class PaddedTwice(nn.Module):
    """Padding in two steps, and padding that several read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = (nn.Conv2d(8, 8, 3) for _ in range(3))

    def forward(self, maps: Tensor) -> Tensor:
        maps = functional.relu(self.first(functional.pad(functional.pad(maps, (1, 1, 0, 0)), (0, 0, 1, 1))))
        wide = functional.pad(maps, (1, 1, 1, 1))
        return torch.cat([functional.relu(self.left(wide)), functional.relu(self.right(wide))], 1)


class Tokens(nn.Module):
    """Attention in one call and in steps, with and without a mask."""

    def __init__(self, *, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.project, self.rest = nn.Linear(12, 36), nn.Linear(12, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.project(tokens).reshape(tokens.shape[0], 5, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(*heads, is_causal=self.causal)
        mixed = (mixed @ mixed.transpose(-1, -2)).softmax(-1) @ mixed
        return self.rest(mixed.transpose(1, 2).reshape(tokens.shape[0], 5, 12).mean(1)).softmax(1)


class Encoder(nn.Module):
    """PyTorch's own attention and encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, activation="gelu", batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(tokens)


MAPS, TOKENS = torch.zeros(2, 8, 8, 8), torch.zeros(2, 5, 12)
NETWORKS: dict[str, tuple[nn.Module, Tensor]] = {
    "activations": (Activations(), MAPS),
    "norms": (Norms(), MAPS),
    "maps": (Maps(), MAPS),
    "padded": (Padded(), MAPS),
    "padded twice": (PaddedTwice(), MAPS),
    "tokens": (Tokens(), TOKENS),
    "causal": (Tokens(causal=True), TOKENS),
    "encoder": (Encoder(), TOKENS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_and_its_file_have_the_same_operators(name: str, tmp_path: Path) -> None:
    network, inputs = NETWORKS[name]
    traced = [describe(operator) for operator in trace_operators(network.eval(), inputs)]
    export(network, tmp_path / "network.onnx", inputs)
    assert [describe(operator) for operator in read_operators(tmp_path / "network.onnx")] == traced


def test_all_kinds_of_operators_are_among_them() -> None:
    found = {
        operator.kind for each in NETWORKS.values() for operator in trace_operators(each[0].eval(), each[1])
    }
    assert found == set(KINDS)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_number_of_images_changes_nothing(name: str) -> None:
    network, inputs = NETWORKS[name]
    one, three = (trace_operators(network.eval(), torch.zeros(count, *inputs.shape[1:])) for count in (1, 3))
    if name != "encoder":  # which puts images second while it projects
        assert one == three
    assert [operator.kind for operator in one] == [operator.kind for operator in three]


def test_attention_is_looked_into_without_gradients_too(tmp_path: Path) -> None:
    attention = nn.MultiheadAttention(12, 3, batch_first=True).eval().requires_grad_(requires_grad=False)
    kinds = {operator.kind for operator in trace_operators(attention, [TOKENS] * 3)}
    assert "softmax" in kinds
    assert torch.backends.mha.get_fastpath_enabled()


def test_padding_by_copies_has_another_name(tmp_path: Path) -> None:
    export(nn.Sequential(nn.ReflectionPad2d(1), nn.ReLU()), tmp_path / "network.onnx", MAPS)
    kinds = [operator.kind for operator in read_operators(tmp_path / "network.onnx")]
    assert "pad" not in kinds
    assert not set(kinds) <= set(KINDS)


def test_a_file_without_a_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(InputError, match="holds no network"):
        read_operators(tmp_path / "empty.onnx")


def test_what_nobody_reads_is_not_executed() -> None:
    attention = nn.MultiheadAttention(12, 3, batch_first=True).eval()

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, tokens: Tensor) -> Tensor:
            return self.attention(tokens, tokens, tokens)[0]

    assert "mean" in {operator.kind for operator in trace_operators(attention, [TOKENS] * 3)}
    assert "mean" not in {operator.kind for operator in trace_operators(First(), TOKENS)}


def test_parts_that_nobody_reads_are_not_cut_out() -> None:
    class Second(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return maps.unbind(2)[1]

    assert [operator.kind for operator in trace_operators(Second(), MAPS)] == ["slice"]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda maps: functional.gelu(maps, approximate="tanh"), "gelu_by_tanh"),
        (lambda maps: maps.mean(1), "mean"),
        (lambda maps: maps[:, ::2], "strided_slice"),
        (lambda maps: functional.layer_norm(maps, maps.shape[1:]), "layer_norm_3d"),
    ],
)
def test_what_costs_something_else_has_another_name(function: object, kind: str) -> None:
    class Called(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return function(maps)  # type: ignore[operator, no-any-return]

    (operator,) = trace_operators(Called(), MAPS)
    assert operator.kind == kind
    assert kind not in KINDS
