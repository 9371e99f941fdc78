"""What is special about PyTorch as a runtime: it is the one that trains, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import hwprune
from hwprune.device.profile import RuntimeSpec
from hwprune.errors import InputError, RuntimeUnavailableError
from hwprune.operators import Operator
from hwprune.runtime.base import Effort, get_runtime
from hwprune.runtime.formats import convert
from hwprune.runtime.operator_models import make_operator_model
from hwprune.runtime.timing import measure, random_feed
from hwprune.runtime.torch_eager import TorchEager, as_deployed

SPEC = RuntimeSpec(kind="torch")


class Attention(nn.Module):
    """Sizes of the input decide about shapes, and a constant is repeated for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.project = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        tokens = images.reshape(batch, channels, height * width).transpose(1, 2)
        tokens = torch.cat([self.token.expand(batch, -1, -1), tokens], dim=1)
        queries, keys, values = self.project(self.norm(tokens)).chunk(3, dim=-1)
        weights = torch.softmax(queries @ keys.transpose(1, 2) * batch, dim=-1)
        return (weights @ values)[:, 0].repeat(1, 2) / batch


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("torch") / "attention.onnx"
    exported = hwprune.export(Attention(), path, torch.zeros(2, 8, 3, 3))
    assert exported.dynamic_batch
    return path


@pytest.mark.parametrize("batch", [1, 5])
def test_sizes_that_are_open_stay_open(attention: Path, tmp_path: Path, batch: int) -> None:
    program = convert(attention, "torch", tmp_path).files[0]
    sessions = [TorchEager().open(path, SPEC) for path in (attention, program)]
    original = get_runtime("onnxruntime").open(attention, RuntimeSpec(kind="onnxruntime"))
    feed = random_feed(original.inputs, batch)
    (expected,) = original.run(feed)
    for session in sessions:
        assert session.inputs == original.inputs
        np.testing.assert_allclose(session.run(feed)[0], expected, rtol=1e-4, atol=1e-5)


def state() -> tuple[int, bool, bool]:
    """Threads, and whether there is mixed precision and gradients."""
    return torch.get_num_threads(), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()


def test_a_training_in_the_same_process_is_left_alone(attention: Path) -> None:
    session = TorchEager().open(attention, RuntimeSpec(kind="torch", threads=2))
    model = make_operator_model([Operator("relu", 8, 8, 4, 4)], batch=1)
    before, seen = torch.get_num_threads(), []
    parameter = torch.ones(3, requires_grad=True)
    torch.set_num_threads(3)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with as_deployed(2):
                seen.append(state())
            outputs = session.run(random_feed(session.inputs, 2))
            TorchEager().operator_samples(model.content, SPEC, model.feed, Effort(0.01, 2, 4))
            seen.append(state())
        (parameter * torch.from_numpy(outputs[0][0, :3])).sum().backward()
    finally:
        torch.set_num_threads(before)
    assert seen == [(2, False, False), (3, True, True)]
    assert outputs[0].dtype == np.float32
    assert parameter.grad is not None


def test_threads_come_back_after_an_error(attention: Path) -> None:
    session = TorchEager().open(attention, RuntimeSpec(kind="torch", threads=torch.get_num_threads() + 1))
    before = torch.get_num_threads()
    with pytest.raises(RuntimeUnavailableError, match="refuses the inputs") as caught:
        session.run({"images": np.zeros((1, 7, 3, 3), np.float32)})
    assert caught.value.where == attention
    assert torch.get_num_threads() == before


def test_a_fused_operator_costs_all_of_its_calls() -> None:
    operators = [
        Operator("conv", 8, 8, 6, 6, 3, 3, padding=1, fused="add"),
        Operator("hard_sigmoid", 8, 8, 4, 4),
    ]
    model = make_operator_model(operators, batch=1)
    samples = TorchEager().operator_samples(model.content, SPEC, model.feed, Effort(0.01, 5, 5))
    assert set(samples) == {"z0", "h0", "s0", "y0", "y1"}
    assert {len(values) for values in samples.values()} == {5}
    assert [model.operator_of(name) for name in ("z0", "h0", "s0", "y0", "y1")] == [0, None, 0, 0, 1]
    assert min(map(min, samples.values())) > 0


def test_older_operator_sets_are_brought_up_to_date(tmp_path: Path) -> None:
    shape = [2, 3, 4]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 1, 4])
    node = helper.make_node("ReduceMean", ["x"], ["y"], axes=[1])
    graph = helper.make_graph([node], "graph", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "old.onnx")
    feed = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    (actual,) = TorchEager().open(tmp_path / "old.onnx", SPEC).run(feed)
    np.testing.assert_allclose(actual, feed["x"].mean(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("name", ["junk.onnx", "junk.pt2"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"junk" * 100)
    with pytest.raises(RuntimeUnavailableError) as caught:
        TorchEager().open(tmp_path / name, SPEC)
    assert caught.value.where == tmp_path / name


def test_a_program_of_someone_else_is_not_loaded(tmp_path: Path) -> None:
    profile = hwprune.load_profile("x86-avx2-torch")
    theirs = tmp_path / "theirs.pt2"
    theirs.write_bytes(b"not even opened")
    with pytest.raises(InputError, match="is not loaded") as caught:
        measure(theirs, profile)
    assert caught.value.where == theirs


def test_a_network_whose_sizes_pytorch_fixes_is_not_converted(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])
    shape = onnx.numpy_helper.from_array(np.array([2, 4]), "shape")
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    graph = helper.make_graph([node], "graph", [value], [result], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(RuntimeUnavailableError, match=r"torch\.export refuses the model") as caught:
        TorchEager().convert(tmp_path / "fixed.onnx", tmp_path / "fixed.pt2")
    assert caught.value.where == tmp_path / "fixed.onnx"
    assert [path.name for path in tmp_path.iterdir()] == ["fixed.onnx"]
