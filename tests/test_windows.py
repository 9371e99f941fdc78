"""Operators that look at windows: what a recording and a file say of both axes, and what a table is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hwprune.device.kinds import describe
from hwprune.device.rows import Row
from hwprune.device.steps import Steps
from hwprune.device.table import LatencyTable
from hwprune.errors import MissingRowError
from hwprune.graph.trace import trace_operators
from hwprune.operators import Operator, multiply_accumulates
from hwprune.runtime.base import Array
from hwprune.runtime.export import export
from hwprune.runtime.onnx_graph import read_operators
from hwprune.runtime.operator_models import make_operator_model
from hwprune.runtime.partial import PartialBuild, partial_file

OBLONG = Operator("conv", 8, 8, 17, 17, 1, 7, padding=0, padding_w=3)
#: Layers, what they are given, the shape that they make, and the products of one place.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1x7": (lambda: nn.Conv2d(8, 8, (1, 7), padding=(0, 3)), (1, 8, 17, 17)),
    "7x1": (lambda: nn.Conv2d(8, 8, (7, 1), padding=(3, 0)), (1, 8, 17, 17)),
    "small map": (lambda: nn.Conv2d(8, 8, (1, 7), padding=(0, 3)), (1, 8, 5, 5)),
    "stride 1x2": (lambda: nn.Conv2d(8, 8, 3, stride=(1, 2), padding=1), (1, 8, 12, 10)),
    "dilation 1x3": (lambda: nn.Conv2d(8, 8, 3, dilation=(1, 3), padding=(1, 3)), (1, 8, 12, 10)),
    "signal": (lambda: nn.Conv1d(8, 8, 5, stride=2, padding=2), (1, 8, 20)),
    "padded pixel": (lambda: nn.Conv2d(8, 8, 1, padding=1), (1, 8, 1, 1)),
    "volume": (lambda: nn.Conv3d(8, 8, 3, stride=(1, 2, 1), padding=1), (1, 8, 6, 8, 4)),
}


def of_file(model: nn.Module, images: torch.Tensor, path: Path) -> Operator:
    export(model, path, images)
    (operator,) = read_operators(path)
    return replace(operator, name="")


@pytest.mark.parametrize("name", LAYERS)
def test_products_are_those_of_the_places_where_the_window_lies(name: str, tmp_path: Path) -> None:
    make, shape = LAYERS[name]
    layer, images = make(), torch.zeros(shape)
    result, weight = layer(images), layer.weight
    expected = weight.numel() * result[0, 0].numel()
    (traced,) = trace_operators(layer, images)
    assert multiply_accumulates(traced) == expected
    assert replace(traced, name="") == of_file(layer, images, tmp_path / "layer.onnx")


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "volume"])
def test_what_is_measured_computes_the_map_of_the_layer(name: str) -> None:
    make, shape = LAYERS[name]
    layer, images = make(), torch.zeros(shape)
    (operator,) = trace_operators(layer, images)
    assert outputs_of(operator)[0].size == layer(images).numel()
    summed = replace(operator, fused="add")
    assert outputs_of(summed)[0].size == layer(images).numel()


def outputs_of(operator: Operator) -> list[Array]:
    model = make_operator_model([operator], batch=1)
    session = onnxruntime.InferenceSession(model.content, providers=["CPUExecutionProvider"])
    return list(session.run(None, model.feed))


POOLINGS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "max 1x2": (nn.MaxPool2d((1, 2)), (1, 8, 6, 6)),
    "max stride 2x1": (nn.MaxPool2d(3, stride=(2, 1), padding=(0, 1)), (1, 8, 9, 6)),
    "max dilated": (nn.MaxPool2d(3, stride=1, dilation=2), (1, 8, 9, 9)),
    "average 2x3": (nn.AvgPool2d((2, 3), stride=(1, 2), padding=(1, 0)), (1, 8, 6, 9)),
    "of a signal": (nn.MaxPool1d(2), (1, 8, 16)),
    "adaptive": (nn.AdaptiveAvgPool2d((2, 3)), (1, 8, 6, 12)),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_have_both_axes_of_their_windows(name: str, tmp_path: Path) -> None:
    layer, shape = POOLINGS[name]
    images = torch.zeros(shape)
    (operator,) = trace_operators(layer, images)
    assert operator.in_channels == 8
    assert outputs_of(operator)[0].size == layer(images).numel()
    assert replace(operator, name="") == of_file(layer, images, tmp_path / "layer.onnx")


@pytest.mark.parametrize("name", ["max 1x2", "average 2x3", "adaptive"])
def test_an_image_without_a_batch_is_pooled_as_with_one(name: str) -> None:
    layer, shape = POOLINGS[name]
    assert trace_operators(layer, torch.zeros(shape[1:])) == trace_operators(layer, torch.zeros(shape))


def file_of_convolution(path: Path, shape: tuple[int, ...], **attributes: object) -> Path:
    weights = numpy_helper.from_array(np.ones((8, 8, 3, 3), dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def test_padding_that_a_file_leaves_to_the_runtime_is_worked_out(tmp_path: Path) -> None:
    (even,) = read_operators(file_of_convolution(tmp_path / "a.onnx", (1, 8, 9, 9), auto_pad="SAME_UPPER"))
    assert even == Operator("conv", 8, 8, 9, 9, 3, 3, padding=1)
    path = file_of_convolution(tmp_path / "b.onnx", (1, 8, 8, 8), auto_pad="SAME_UPPER", strides=[2, 2])
    # As many places as with one row and column of zeros on every side.
    assert read_operators(path) == (Operator("conv", 8, 8, 8, 8, 3, 3, stride=2, padding=1),)


def test_what_no_row_describes_is_refused_by_name(tmp_path: Path) -> None:
    table = LatencyTable((Row(Operator("conv", 8, 8, 8, 8, 3, 3, padding=1), 1.0),))
    (volume,) = trace_operators(nn.Conv3d(8, 8, 3, padding=1), torch.zeros(1, 8, 4, 8, 8))
    (uneven,) = read_operators(file_of_convolution(tmp_path / "u.onnx", (1, 8, 8, 8), pads=[0, 0, 1, 1]))
    for operator, kind in ((volume, "conv3d"), (uneven, "conv_uneven_padding")):
        with pytest.raises(MissingRowError, match=f"cannot price {kind} 8->8"):
            table.latency_us(operator)
        with pytest.raises(MissingRowError, match=f"of kind {kind} cannot be measured"):
            make_operator_model([operator], batch=1)
    assert multiply_accumulates(uneven) == 64 * 9 * 7 * 7


def test_sizes_along_both_axes_are_told_and_one_spelling_is_one_operator() -> None:
    assert describe(OBLONG) == "conv 8->8 on 17x17, kernel 1x7, padding 0x3"
    square = Operator("conv", 8, 8, 4, 4, 3, 3, 2, 1)
    assert replace(square, stride_w=2, padding_w=1, dilation_w=1) == square
    assert describe(square) == "conv 8->8 on 4x4, kernel 3x3, stride 2, padding 1"


def test_a_table_keeps_both_axes_and_has_columns_for_them_only_then(tmp_path: Path) -> None:
    path = tmp_path / "latency.csv"
    square = Operator("conv", 8, 8, 17, 17, 3, 3, padding=1)
    operators = [OBLONG, replace(OBLONG, padding_w=None), square, replace(square, stride_w=2, dilation_w=3)]
    LatencyTable(tuple(Row(operator, 1.0) for operator in operators)).write(path, {})
    assert path.read_text().splitlines()[0].endswith(",undisturbed_us,stride_w,padding_w,dilation_w")
    assert LatencyTable.read(path).operators == set(operators)
    LatencyTable((Row(square, 1.0),)).write(path, {})
    assert path.read_text().splitlines()[0].endswith(",undisturbed_us")
    pixel = Operator("conv", 8, 8, 1, 1, 1, 1, padding=1)
    LatencyTable((Row(pixel, 1.0),)).write(path, {})
    assert LatencyTable.read(path).operators == {pixel}


def test_tables_from_before_both_axes_are_read_as_they_were_measured(tmp_path: Path) -> None:
    path = tmp_path / "latency.csv"
    path.write_text(
        "op,kernel_h,kernel_w,stride,padding,dilation,groups,in_channels,out_channels,height,width,batch,"
        "precision,median_us,p10_us,p90_us,runs\n"
        "conv,1,5,2,2,1,1,8,8,1,20,1,fp32,1,1,1,9\n"
    )
    (signal,) = trace_operators(nn.Conv1d(8, 8, 5, stride=2, padding=2), torch.zeros(1, 8, 20))
    assert LatencyTable.read(path).latency_us(signal) == 1.0


def test_an_unfinished_build_keeps_both_axes_and_is_read_where_it_knew_one(tmp_path: Path) -> None:
    path = partial_file(tmp_path / "device")
    build = PartialBuild.open(path, {})
    square = Operator("conv", 8, 8, 17, 17, 3, 3, stride=2, padding=1)
    for operator in (OBLONG, square):
        build.rows[1024, operator] = Row(operator, 1.0)
        build.steps[operator] = Steps(8)
    build.save(now=True)
    assert PartialBuild.open(path, {}).rows == build.rows
    record = json.loads(path.read_text())
    known = len(astuple(square)) - 3
    record["rows"] = [[*row[: 1 + known], *row[-5:]] for row in record["rows"] if row[7] == 3]
    record["steps"] = [[*step[:known], step[-1]] for step in record["steps"] if step[6] == 3]
    path.write_text(json.dumps(record))
    older = PartialBuild.open(path, {})
    assert older.rows == {(1024, square): Row(square, 1.0)}
    assert older.steps == {square: Steps(8)}
