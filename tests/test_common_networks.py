"""Blocks of networks that everybody has: attention, and inverted bottlenecks with SiLU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import hwprune
from hwprune.device.kinds import KINDS
from hwprune.device.predict import predict_operators
from hwprune.device.rows import Row
from hwprune.graph.trace import trace_operators
from hwprune.operators import Operator
from hwprune.runtime import sampling
from hwprune.runtime.local import localize
from hwprune.targets import Target


class Attention(nn.Module):
    """A small vision transformer with its attention written out."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.query_key_value, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 32 * width), nn.Linear(32 * width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        batch, length, width = tokens.shape
        split = self.query_key_value(self.norms[0](tokens)).reshape(batch, length, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (query @ key.transpose(-2, -1) * 0.3).softmax(-1) @ value
        tokens = tokens + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        tokens = tokens + self.narrow(functional.gelu(self.wide(self.norms[1](tokens))))
        return self.head(tokens.mean(1))


def _convolved(
    source: int, target: int, *, groups: int = 1, kernel: int = 1, stride: int = 1
) -> nn.Sequential:
    convolution = nn.Conv2d(source, target, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(target), nn.SiLU())


class Bottleneck(nn.Module):
    """An inverted bottleneck with squeeze and excitation, as EfficientNet has them."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        wide = 4 * width
        self.stem, self.expand = _convolved(3, width, kernel=3, stride=2), _convolved(width, wide)
        self.depthwise = _convolved(wide, wide, groups=wide, kernel=3)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 8, 1), nn.SiLU(), nn.Conv2d(8, wide, 1), nn.Sigmoid()
        )
        self.project = nn.Sequential(nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        low = self.stem(images)
        wide = self.depthwise(self.expand(low))
        return self.head((low + self.project(wide * self.squeeze(wide))).mean((2, 3)))


IMAGES = torch.zeros(2, 3, 16, 16)


@pytest.mark.parametrize("make", [Attention, Bottleneck])
def test_every_operator_has_a_kind_that_tables_know(make: type[nn.Module]) -> None:
    assert {operator.kind for operator in trace_operators(make().eval(), IMAGES)} <= set(KINDS)


def test_a_layer_norm_runs_along_the_last_dimension_of_a_map() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(6)

        def forward(self, maps: Tensor) -> Tensor:
            return self.norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    operators = {operator.kind: operator for operator in trace_operators(Last(), torch.zeros(2, 6, 4, 5))}
    assert (operators["layer_norm"].out_channels, operators["layer_norm"].height) == (6, 20)


@pytest.mark.parametrize("make", [Attention, Bottleneck])
def test_every_operator_is_measured(
    make: type[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    operators = trace_operators(make().eval(), IMAGES)
    profile = localize(hwprune.load_profile("x86-avx2-ort"), operators, notify=lambda line: None)
    prediction = predict_operators(operators, profile)
    assert len(prediction.layers) == len(operators)
    assert min(layer.latency_us for layer in prediction.layers) > 0


@pytest.mark.parametrize("make", [Attention, Bottleneck])
@pytest.mark.parametrize("target", [hwprune.Keep(0.5), hwprune.Speedup(1.2)], ids=["keep", "speedup"])
def test_blocks_of_common_networks_are_pruned(
    make: type[nn.Module], target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_size(operators: Sequence[Operator], *_arguments: object) -> list[Row]:
        # No busy machine makes a target unreachable.
        return [Row(replace(each, name=""), 1.0 + sampling.bytes_of(each) / 1e3) for each in operators]

    monkeypatch.setattr(sampling, "_measure_chunk", by_size)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(0)
    model = make().eval()
    profile = hwprune.load_profile("x86-avx2-ort")
    profile = localize(profile, trace_operators(model, IMAGES), notify=lambda line: None)
    compressor = hwprune.Compressor(model, IMAGES, profile, target, total_steps=4, measure=False)
    result = compressor.finish()
    before, after = (
        sum(weight.numel() for weight in network.parameters()) for network in (model, result.model)
    )
    assert after < before
    assert result.report.predicted_us["slim"] < result.report.predicted_us["dense"]
