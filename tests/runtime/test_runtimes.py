"""What every runtime must do, whichever it is."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import hwprune
from hwprune.device.profile import RuntimeSpec
from hwprune.errors import RuntimeUnavailableError
from hwprune.operators import Operator
from hwprune.runtime.base import REGISTRY, Effort, get_runtime
from hwprune.runtime.formats import FORMATS
from hwprune.runtime.operator_models import BUILDERS, UNTIMED, make_operator_model
from hwprune.runtime.sampling import measure_operators
from hwprune.runtime.timing import random_feed
from hwprune.shipping import DEPLOYED_AS, RUN_LINES

QUICK = Effort(seconds=0.02, least_runs=8, most_runs=16)
ONNX_RUNTIME = RuntimeSpec(kind="onnxruntime")


class Mixed(nn.Module):
    """Convolutions of every sort, a sum, a concat, poolings, a resize and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6())
        self.grouped = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=4)
        self.down = nn.Conv2d(32, 20, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(20, 12, 2, stride=2)
        self.head = nn.Sequential(nn.Linear(12, 30), nn.Sigmoid(), nn.Linear(30, 5))

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        joined = torch.cat([stem, torch.relu(self.depthwise(stem) + self.grouped(stem))], dim=1)
        low = nn.functional.max_pool2d(self.down(joined), 2)
        high = self.up(nn.functional.leaky_relu(low))
        return self.head(high.mean(dim=(2, 3)))


@pytest.fixture(params=sorted(REGISTRY))
def kind(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    pytest.importorskip(REGISTRY[name][2])
    return name


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("runtimes") / "mixed.onnx"
    hwprune.export(Mixed(), path, torch.zeros(2, 3, 16, 16))
    return path


def test_a_network_computes_what_onnx_runtime_computes(kind: str, network: Path) -> None:
    original = get_runtime("onnxruntime").open(network, ONNX_RUNTIME)
    session = get_runtime(kind).open(network, RuntimeSpec(kind=kind))
    assert session.inputs == original.inputs
    for batch in (1, 3, 1):  # a session follows the shapes that it is fed
        feed = random_feed(original.inputs, batch)
        (expected,), (actual,) = original.run(feed), session.run(feed)
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def test_outputs_are_kept_when_the_next_run_overwrites_its_own(kind: str, network: Path) -> None:
    session = get_runtime(kind).open(network, RuntimeSpec(kind=kind))
    feeds = [random_feed(session.inputs, 1, seed) for seed in (0, 1)]
    first = session.run(feeds[0])[0]
    before = np.array(first)
    assert np.abs(session.run(feeds[1])[0] - before).max() > 0
    np.testing.assert_array_equal(first, before)


def examples(runtime: str) -> list[Operator]:
    """One operator of every kind that the runtime can time, and every sort of convolution."""
    windows = {"kernel_h": 2, "kernel_w": 2, "stride": 2}
    special = {"conv_transpose": windows, "max_pool": windows, "average_pool": windows}
    plain = [k for k in BUILDERS if k not in ("conv", "linear") and k not in UNTIMED.get(runtime, ())]
    maps = [Operator(k, 16, 16, 8, 8, **special.get(k, {})) for k in plain]
    return [
        *maps,
        Operator("conv", 3, 16, 8, 8, 3, 3, padding=1),
        Operator("conv", 16, 24, 8, 8, 3, 3, padding=1, stride=2),
        Operator("conv", 16, 16, 8, 8, 3, 3, padding=1, fused="add"),
        Operator("conv", 16, 16, 8, 8, 3, 3, padding=1, groups=16),
        Operator("conv", 16, 16, 8, 8, 3, 3, padding=1, groups=4),
        Operator("conv", 16, 16, 8, 8, 3, 3, padding=2, dilation=2),
        Operator("conv", 16, 16, 8, 8, 1, 7, padding_w=3),
        Operator("conv", 16, 16, 8, 8, 3, 3, padding=1, stride_w=2, fused="add"),
        Operator("max_pool", 16, 16, 8, 8, 1, 2, stride_w=2),
        Operator("linear", 32, 10),
        Operator("linear", 32, 10, height=4),
    ]


def test_every_operator_has_a_time(kind: str) -> None:
    operators = examples(kind)
    rows = measure_operators(operators, RuntimeSpec(kind=kind), effort=QUICK)
    assert [row.operator for row in rows] == operators
    assert all(0 < row.p10_us <= row.median_us <= row.p90_us < 20_000 for row in rows)


def test_a_model_without_weights_is_timed(kind: str) -> None:
    (row,) = measure_operators([Operator("add", 16, 16, 8, 8)], RuntimeSpec(kind=kind), effort=QUICK)
    assert row.median_us > 0


def test_kernels_are_told_for_the_operator_that_runs_them(kind: str) -> None:
    wide = Operator("conv", 96, 96, 20, 20, 3, 3, padding=1)
    narrow = Operator("conv", 8, 8, 20, 20, 3, 3, padding=1)
    operators = [narrow, wide, Operator("relu", 8, 8, 20, 20), wide, narrow]
    times = [row.p10_us for row in measure_operators(operators, RuntimeSpec(kind=kind), effort=QUICK)]
    assert min(times[1], times[3]) > 5 * max(times[0], times[2], times[4])


def test_only_kernels_of_the_model_are_told(kind: str) -> None:
    operators = examples(kind)
    model = make_operator_model(operators, batch=1, runtime=kind)
    samples = get_runtime(kind).operator_samples(model.content, RuntimeSpec(kind=kind), model.feed, QUICK)
    known = {model.operator_of(kernel) for kernel in samples} - {None}
    assert known == set(range(len(operators)))


def test_a_runtime_writes_nothing_to_the_terminal(
    kind: str, network: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = get_runtime(kind).open(network, RuntimeSpec(kind=kind))
    session.run(random_feed(session.inputs, 2))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["mnn", "mnn-sparse", "ncnn"])
def test_an_operator_that_a_converter_lacks_is_named_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    ending, convert, reader = FORMATS[name]
    pytest.importorskip(REGISTRY[reader][2])
    sizes = {"x": 1, "y": 2}
    values = [
        onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, [1, 8, 8, size])
        for value, size in sizes.items()
    ]
    node = onnx.helper.make_node("DFT", ["x"], ["y"], axis=1)
    graph = onnx.helper.make_graph([node], "graph", values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "dft.onnx")
    with pytest.raises(RuntimeUnavailableError, match="DFT") as caught:
        convert(tmp_path / "dft.onnx", tmp_path / f"dft{ending}")
    assert caught.value.where == tmp_path / "dft.onnx"
    assert [path.name for path in tmp_path.iterdir()] == ["dft.onnx"]


def test_every_runtime_has_lines_that_run_its_files() -> None:
    assert RUN_LINES.keys() == REGISTRY.keys()
    assert DEPLOYED_AS.keys() <= REGISTRY.keys()
    assert set(DEPLOYED_AS.values()) <= FORMATS.keys()


def test_a_missing_package_names_its_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(RuntimeUnavailableError, match=f"needs the package {REGISTRY[kind][2]}") as caught:
        get_runtime(kind)
    assert REGISTRY[kind][3] in str(caught.value)
