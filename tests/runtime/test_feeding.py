"""What models are fed to be timed: nothing is made up that latency depends on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwprune.device.library import load_profile
from hwprune.device.profile import DeviceProfile, RuntimeSpec
from hwprune.errors import HwpruneError, InputError, RuntimeUnavailableError
from hwprune.runtime.base import InputInfo, get_runtime
from hwprune.runtime.onnx_graph import read_operators
from hwprune.runtime.remote import Host, measure_on
from hwprune.runtime.timing import measure, random_feed

ORT = RuntimeSpec(kind="onnxruntime")


def file_of(path: Path, node: Any, given: Any, *weights: Any) -> Path:
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", [given], [result], list(weights))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def convolution(path: Path, *shape: int | str) -> Path:
    weights = numpy_helper.from_array(np.ones((8, 3, 3, 3), dtype=np.float32), "w")
    given = helper.make_tensor_value_info("photo", TensorProto.FLOAT, shape)
    return file_of(path, helper.make_node("Conv", ["photo", "w"], ["y"], pads=[1] * 4), given, weights)


def profile() -> DeviceProfile:
    return load_profile("x86-avx2-ort")


TIMED: dict[str, Callable[[Path], object]] = {
    "here": lambda path: measure(path, profile(), runs=1),
    "elsewhere": lambda path: measure_on(Host("nowhere", ssh=("false",)), {"network": path}, profile()),
    "predicted": read_operators,
}


@pytest.mark.parametrize("way", TIMED)
def test_a_map_of_an_open_size_is_refused_by_name(tmp_path: Path, way: str) -> None:
    with pytest.raises(InputError, match=r"input photo.*got \(\?, 3, \?, \?\)\. Export .* fixed sizes"):
        TIMED[way](convolution(tmp_path / "open.onnx", "n", 3, "h", "w"))


def test_an_open_batch_is_filled_in(tmp_path: Path) -> None:
    path = convolution(tmp_path / "batch.onnx", "n", 3, 8, 8)
    session = get_runtime("onnxruntime").open(path, ORT)
    assert random_feed(session.inputs, 4)["photo"].shape == (4, 3, 8, 8)
    assert read_operators(path)[0].height == 8


def test_text_is_not_made_up(tmp_path: Path) -> None:
    given = helper.make_tensor_value_info("words", TensorProto.STRING, ["n"])
    path = file_of(tmp_path / "text.onnx", helper.make_node("Identity", ["words"], ["y"]), given)
    model = onnx.load(str(path))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    onnx.save(model, str(path))
    with pytest.raises(RuntimeUnavailableError, match=r"input words.*got tensor\(string\)"):
        get_runtime("onnxruntime").open(path, ORT)
    with pytest.raises(InputError, match="input words"):
        InputInfo("words", (None,), np.dtype(object)).filled(1)


def test_what_the_runtime_refuses_to_run_is_an_error_of_ours(tmp_path: Path) -> None:
    path = convolution(tmp_path / "fixed.onnx", 1, 3, 8, 8)
    session = get_runtime("onnxruntime").open(path, ORT)
    with pytest.raises(HwpruneError, match=r"cannot run the model \(in .*fixed\.onnx\)"):
        session.run({"photo": np.ones((1, 3, 9, 9), dtype=np.float32)})
