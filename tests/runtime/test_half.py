"""Networks in half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import hwprune
from hwprune.device.profile import RuntimeSpec
from hwprune.errors import InputError, RuntimeUnavailableError
from hwprune.operators import Operator
from hwprune.runtime.base import get_runtime
from hwprune.runtime.half import half, is_half, to_half
from hwprune.runtime.operator_models import OperatorModel, make_operator_model
from hwprune.runtime.timing import as_run, precision_of, random_feed


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    path = tmp_path_factory.mktemp("half") / "single.onnx"
    hwprune.export(model, path, torch.zeros(2, 3, 8, 8))
    return path


def test_weights_are_halved_and_the_interface_stays(single: Path, tmp_path: Path) -> None:
    target = tmp_path / "half.onnx"
    to_half(single, target)
    assert (is_half(single), is_half(target)) == (False, True)
    spec = RuntimeSpec(kind="onnxruntime")
    before, after = (get_runtime("onnxruntime").open(path, spec) for path in (single, target))
    assert after.inputs == before.inputs
    feed = random_feed(before.inputs, 3)
    expected, actual = before.run(feed)[0], after.run(feed)[0]
    assert actual.dtype == np.float32
    assert 0 < np.abs(actual - expected).max() < 1e-2 * np.abs(expected).max()


def test_a_device_of_half_precision_runs_converted_files(single: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.onnx"
    to_half(single, ready)
    spec = RuntimeSpec(kind="tensorrt", precision="fp16")
    paths = {"single": single, "ready": ready}
    with as_run(paths, spec) as files:
        assert is_half(files["single"])
        assert files["ready"] == ready
    assert not files["single"].exists()
    told = {name: precision_of(path, files[name], spec) for name, path in paths.items()}
    assert told == {"single": {"precision": "fp16"}, "ready": {"precision": "fp16"}}
    with as_run(paths, RuntimeSpec(kind="tensorrt")) as files:
        assert files == paths
    assert precision_of(ready, ready, RuntimeSpec(kind="tensorrt")) == {"precision": "fp16"}
    engine = tmp_path / "ready.engine"
    with as_run({"engine": engine}, spec) as files:
        assert precision_of(engine, files["engine"], spec) == {"precision": "as built"}


def test_operators_keep_their_names_and_conversions_at_the_edges_have_none() -> None:
    operators = [Operator("conv", 8, 16, 6, 6, 3, 3, fused="add"), Operator("linear", 16, 4)]
    before = onnx.load_from_string(make_operator_model(operators, batch=1).content).graph
    after = onnx.load_from_string(half(make_operator_model(operators, batch=1).content)).graph
    added = {node.name for node in after.node} - {node.name for node in before.node}
    assert {node.name for node in before.node} <= {node.name for node in after.node}
    assert added
    assert {OperatorModel.operator_of(name) for name in added} == {None}


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    with pytest.raises(RuntimeUnavailableError, match="half precision"):
        to_half(tmp_path / "x.onnx", tmp_path / "half.onnx")
    with pytest.raises(InputError, match="not a readable ONNX file"):
        is_half(tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
