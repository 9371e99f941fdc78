"""Networks on 8 bits: what they compute, what they weigh, and who runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import hwprune
from hwprune.device.kinds import describe
from hwprune.device.profile import RuntimeSpec
from hwprune.errors import InputError, RuntimeUnavailableError
from hwprune.runtime.base import REGISTRY, Array, get_runtime, kinds_running, runtime_for
from hwprune.runtime.onnx_graph import read_operators
from hwprune.runtime.quantize import is_quantized, quantize
from hwprune.runtime.timing import as_run, measure_alternately, random_feed


class Residual(nn.Module):
    """Convolutions of two sorts, a sum, poolings and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem(images)
        return self.head(nn.functional.max_pool2d(torch.relu(stem + self.body(stem)), 2))


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network in single precision."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("quantize") / "network.onnx"
    hwprune.export(Residual(), path, torch.zeros(2, 3, 12, 12))
    return path


def batches(path: Path, count: int = 2, images: int = 16) -> list[dict[str, Array]]:
    inputs = get_runtime("onnxruntime").open(path, RuntimeSpec(kind="onnxruntime")).inputs
    return [random_feed(inputs, images, seed) for seed in range(count)]


@pytest.fixture(scope="module")
def quantized(single: Path) -> Path:
    path = single.with_name("quantized.onnx")
    quantize(single, path, batches(single))
    return path


@pytest.mark.parametrize("kind", kinds_running("int8"))
def test_a_quantised_network_computes_nearly_the_same(single: Path, quantized: Path, kind: str) -> None:
    pytest.importorskip(REGISTRY[kind][2])
    original = get_runtime("onnxruntime").open(single, RuntimeSpec(kind="onnxruntime"))
    spec = RuntimeSpec(kind=kind, precision="int8")
    session = runtime_for(spec).open(quantized, spec)
    assert session.inputs == original.inputs
    for count in (1, 3):
        feed = random_feed(original.inputs, count, seed=7)
        expected, actual = original.run(feed)[0], session.run(feed)[0]
        assert actual.shape == expected.shape
        difference = np.abs(actual - expected).max() / np.abs(expected).max()
        assert 1e-5 < difference < 0.15  # it is not the network in single precision either


def test_quantising_writes_nothing_to_the_terminal(
    single: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quantize(single, tmp_path / "out.onnx", batches(single))
    assert capfd.readouterr() == ("", "")


def test_weights_are_bytes_per_channel_that_no_sum_of_two_products_overflows(quantized: Path) -> None:
    graph = onnx.load(quantized).graph
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    filters = [values for values in weights.values() if values.dtype == np.int8 and values.ndim == 4]
    assert [values.shape for values in filters] == [(16, 3, 3, 3), (16, 1, 3, 3)]
    assert all(60 <= np.abs(values).max() <= 64 for values in filters)
    assert all(np.abs(values).reshape(len(values), -1).max(axis=1).min() >= 60 for values in filters)
    assert is_quantized(quantized)


def test_nothing_of_the_network_stays_in_single_precision(quantized: Path) -> None:
    graph = onnx.load(quantized).graph
    readers = {name: node.op_type for node in graph.node for name in node.input}
    computing = ("Conv", "Gemm", "MaxPool", "Add", "GlobalAveragePool")
    found = [node for node in graph.node if node.op_type in computing]
    assert len(found) == 6
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    assert {made_by[node.input[0]] for node in found} == {"DequantizeLinear"}
    assert {readers[node.output[0]] for node in found} == {"QuantizeLinear"}


def test_what_cannot_be_quantised_is_refused_and_nothing_is_left(
    single: Path, quantized: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.onnx"
    with pytest.raises(InputError, match="calibrate"):
        quantize(single, target, [])
    with pytest.raises(InputError, match="quantised already"):
        quantize(quantized, target, batches(single))
    with pytest.raises(InputError, match="no such model file"):
        quantize(tmp_path / "absent.onnx", target, batches(single))
    with pytest.raises(RuntimeUnavailableError, match="cannot be quantised"):
        quantize(single, target, [{"another": np.zeros((2, 3, 12, 12), np.float32)}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", sorted(REGISTRY))
def test_a_runtime_runs_8_bits_or_says_that_it_does_not(kind: str) -> None:
    pytest.importorskip(REGISTRY[kind][2])
    spec = RuntimeSpec(kind=kind, precision="int8")
    if kind in kinds_running("int8"):
        assert runtime_for(spec).version() == get_runtime(kind).version()
        return
    with pytest.raises(
        RuntimeUnavailableError, match=f"{kind} does not run int8 here.*onnxruntime, openvino"
    ):
        runtime_for(spec)


def test_a_device_of_8_bits_is_timed_on_8_bits(single: Path, quantized: Path) -> None:
    profile = hwprune.load_profile("x86-avx2-ort")
    spec = RuntimeSpec(kind="onnxruntime", precision="int8")
    timings = measure_alternately(
        {"single": single, "ready": quantized}, profile.model_copy(update={"runtime": spec}), runs=20
    )
    assert {timing.environment["precision"] for timing in timings.values()} == {"int8"}
    assert [name for name, timing in timings.items() if "quantised" in timing.environment] == ["single"]
    both = measure_alternately({"single": single, "ready": quantized}, profile, runs=20)
    assert {name: timing.environment["precision"] for name, timing in both.items()} == {
        "single": "fp32",
        "ready": "int8",
    }
    assert not is_quantized(single)
    with as_run({"single": single, "ready": quantized}, spec) as files:
        assert is_quantized(files["single"])
        assert files["ready"] == quantized
    assert not files["single"].exists()
    with as_run({"single": single}, RuntimeSpec(kind="onnxruntime")) as files:
        assert files == {"single": single}


def test_a_quantised_file_has_the_operators_of_the_network(single: Path, quantized: Path) -> None:
    def without_names(path: Path) -> set[str]:
        return {describe(operator) for operator in read_operators(path) if operator.kind != "relu"}

    assert without_names(quantized) == without_names(single)
