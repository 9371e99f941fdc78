"""Every ONNX operator that PyTorch is said to run computes what ONNX says that it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hwprune.errors import RuntimeUnavailableError
from hwprune.runtime.eager.graph import network_of
from hwprune.runtime.eager.table import TRANSLATIONS

MAPS = (2, 4, 6, 6)
WINDOWS = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


@dataclass(frozen=True)
class Case:
    """An operator with its inputs: shapes of random ones, constants as lists or numbers, or nothing."""

    kind: str
    inputs: Sequence[Any] = (MAPS,)
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 18


@dataclass(frozen=True)
class Known:
    """A constant in the file."""

    value: Any
    type: str = "int64"


@dataclass(frozen=True)
class Fed:
    """An input of another type than the usual one."""

    value: Any
    type: str


def known(*value: int) -> Known:
    return Known(list(value))


BOOLEANS = Fed([[True, False, True], [False, False, True]], "bool")
FLAGS = Fed([[True, True, False], [False, True, False]], "bool")
CASES = [
    *(
        Case(kind)
        for kind in (
            *("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "IsNaN", "Mish", "Neg"),
            *("Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh", "Elu"),
            *(
                "LeakyRelu",
                "HardSigmoid",
                "Softmax",
                "LogSoftmax",
                "GlobalAveragePool",
                "GlobalMaxPool",
                "Dropout",
            ),
            *("ArgMax", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"),
        )
    ),
    *(Case(kind, (MAPS, (4, 1, 1))) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "PRelu")),
    *(Case(kind, (MAPS, MAPS)) for kind in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")),
    *(Case(kind, (BOOLEANS, FLAGS)) for kind in ("And", "Or", "Xor")),
    Case("Not", (BOOLEANS,)),
    Case("Sqrt", (Fed([0.5, 4.0], "float32"),)),
    Case("Log", (Fed([0.5, 4.0], "float32"),)),
    Case("Pow", (MAPS, Known(2.0, "float32"))),
    Case("Div", (Fed([7, -7], "int64"), Fed([2, 2], "int64"))),
    Case("Mod", (Fed([7, -7], "int64"), Fed([3, 3], "int64"))),
    Case("Mod", (MAPS, (4, 1, 1)), {"fmod": 1}),
    Case("Where", (BOOLEANS, (2, 3), (3,))),
    Case("Elu", attributes={"alpha": 0.5}),
    Case("LeakyRelu", attributes={"alpha": 0.3}),
    Case("HardSigmoid", attributes={"alpha": 1 / 6}),
    Case("Gelu", opset=20),
    Case("Gelu", attributes={"approximate": "tanh"}, opset=20),
    Case("Clip", (MAPS, Known(-0.5, "float32"), Known(0.5, "float32"))),
    Case("Clip", (MAPS, None, Known(0.5, "float32"))),
    Case("Cast", attributes={"to": onnx.TensorProto.INT64}),
    Case("Softmax", attributes={"axis": 1}),
    Case("CumSum", (MAPS, Known(2))),
    Case("ArgMax", attributes={"axis": 1, "keepdims": 0}),
    *(Case(kind, (MAPS, known(2, 3)), {"keepdims": 0}) for kind in ("ReduceMean", "ReduceSum", "ReduceL2")),
    *(Case(kind, (MAPS, known(-1)), {"keepdims": 1}) for kind in ("ReduceMax", "ReduceMin")),
    Case("ReduceMean", attributes={"noop_with_empty_axes": 1}),
    Case("MatMul", ((2, 3, 4), (4, 5))),
    Case("Gemm", ((3, 4), (5, 4), (5,)), {"transB": 1}),
    Case("Gemm", ((4, 3), (4, 5), (5,)), {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", ((3, 4), (4, 5)), {"alpha": 0.5}),
    Case("Einsum", ((2, 3, 4), (2, 4, 5)), {"equation": "bij,bjk->bik"}),
    Case("BatchNormalization", (MAPS, (4,), (4,), (4,), Known([1.0, 2.0, 3.0, 4.0], "float32"))),
    Case("InstanceNormalization", (MAPS, (4,), (4,))),
    Case("LayerNormalization", ((2, 3, 8), (8,), (8,))),
    Case("LayerNormalization", ((2, 3, 8), (3, 8)), {"axis": 1}),
    Case("Conv", (MAPS, (6, 4, 3, 3), (6,)), WINDOWS),
    Case("Conv", (MAPS, (6, 4, 3, 3)), {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1]}),
    Case("Conv", (MAPS, (4, 1, 3, 3)), {"kernel_shape": [3, 3], "group": 4, "dilations": [2, 2]}),
    Case("Conv", ((2, 4, 9), (6, 4, 3)), {"kernel_shape": [3]}),
    Case("Conv", ((1, 2, 5, 5, 5), (3, 2, 3, 3, 3)), {"kernel_shape": [3, 3, 3]}),
    Case("ConvTranspose", (MAPS, (4, 3, 2, 2), (3,)), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("ConvTranspose", (MAPS, (4, 3, 3, 3)), {**WINDOWS, "output_padding": [1, 1]}),
    Case("MaxPool", attributes=WINDOWS),
    Case("MaxPool", attributes={**WINDOWS, "pads": [0, 0, 1, 1]}),
    Case("MaxPool", attributes={"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case("AveragePool", attributes=WINDOWS),
    Case("AveragePool", attributes={**WINDOWS, "count_include_pad": 1}),
    Case("Pad", (MAPS, known(0, 0, 1, 2, 0, 0, 3, 0), Known(1.5, "float32"))),
    Case("Pad", (MAPS, known(0, 0, 1, 2, 0, 0, 3, 0)), {"mode": "reflect"}),
    Case("Pad", (MAPS, known(0, 0, 1, 2, 0, 0, 3, 0)), {"mode": "edge"}),
    Case(
        "Resize",
        (MAPS, None, Known([1.0, 1.0, 2.0, 2.0], "float32")),
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    Case("Resize", (MAPS, None, None, known(2, 4, 9, 12)), {"mode": "linear"}),
    Case(
        "Resize",
        (MAPS, None, None, known(2, 4, 9, 12)),
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    Case("Resize", (MAPS, None, None, known(2, 4, 9, 12)), {"mode": "cubic"}),
    Case("Reshape", (MAPS, known(0, -1, 9))),
    Case("Flatten"),
    Case("Flatten", attributes={"axis": 2}),
    Case("Transpose", attributes={"perm": [0, 2, 3, 1]}),
    Case("Squeeze", ((2, 1, 3, 1), known(1, 3))),
    Case("Squeeze", ((2, 1, 3, 1),)),
    Case("Unsqueeze", ((2, 3), known(0, 3))),
    Case("Unsqueeze", ((2, 3), known(-1, -3))),
    Case("Expand", ((3, 1), known(2, 1, 4))),
    Case("Tile", ((2, 3), known(2, 3))),
    Case("Concat", ((2, 3, 4), (2, 5, 4)), {"axis": 1}),
    Case("Split", ((2, 9), known(2, 4, 3)), {"axis": 1}, outputs=3),
    Case("Split", ((2, 9),), {"axis": 1, "num_outputs": 3}, outputs=3),
    Case("Slice", (MAPS, known(1, -3), known(2**63 - 1, -1), known(1, 3), known(2, 1))),
    Case("Slice", (MAPS, known(1), known(3), known(-2))),
    Case("Gather", (MAPS, Known([[0, -1], [2, 2]])), {"axis": 1}),
    Case("Gather", (MAPS, Fed(1, "int64")), {"axis": -1}),
    Case("GatherElements", ((2, 3), Fed([[0, 2], [1, 0]], "int64")), {"axis": 1}),
    Case("GatherND", ((2, 3, 4), Fed([[0, 1], [1, 2]], "int64"))),
    Case("Trilu", ((3, 3), Known(1)), {"upper": 0}),
    Case("Trilu", ((3, 3),)),
    Case("DepthToSpace", (MAPS,), {"blocksize": 2, "mode": "CRD"}),
    Case("Range", (Known(1), Fed(7, "int64"), Known(2))),
]


def one_operator(case: Case) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """A model of one node, and what it is fed."""
    generator = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    constants, names = [], []
    for index, item in enumerate(case.inputs):
        name = "" if item is None else f"in{index}"
        names.append(name)
        if isinstance(item, Known):
            constants.append(numpy_helper.from_array(np.array(item.value, item.type), name))
        elif isinstance(item, Fed):
            feed[name] = np.array(item.value, item.type)
        elif item is not None:
            feed[name] = generator.standard_normal(item).astype(np.float32)
    outputs = [f"out{index}" for index in range(case.outputs)]
    node = helper.make_node(case.kind, names, outputs, name="single", **case.attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim
            )
            for name, value in feed.items()
        ],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)]), feed


@pytest.mark.parametrize("case", [case for case in CASES if case.kind != "Range"], ids=lambda case: case.kind)
def test_an_operator_computes_what_onnx_says(case: Case) -> None:
    model, feed = one_operator(case)
    expected = ReferenceEvaluator(model).run(None, feed)
    actual = network_of(model, "a model").forward(*map(torch.from_numpy, feed.values()))
    assert len(actual) == len(expected) == case.outputs
    for first, second in zip(actual, expected, strict=True):
        assert first.numpy().shape == np.shape(second)
        assert first.numpy().dtype == np.asarray(second).dtype
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_every_translation_has_a_case() -> None:
    assert {case.kind for case in CASES} == TRANSLATIONS.keys()


REFUSED = [
    (Case("Det", ((3, 3),)), "no translation"),
    (Case("Range", (Known(1), Fed(7, "int64"), Known(2))), "must know before"),
    (Case("Conv", (MAPS, (6, 4, 3, 3)), {"auto_pad": "SAME_UPPER"}), "SAME_UPPER"),
    (
        Case("ConvTranspose", (MAPS, (4, 3, 3, 3)), {**WINDOWS, "pads": [0, 0, 1, 1]}),
        "transposed convolution",
    ),
    (Case("MaxPool", attributes=WINDOWS, outputs=2), "where the largest"),
    (Case("AveragePool", attributes={**WINDOWS, "pads": [0, 0, 1, 1]}), "average pooling"),
    (Case("Resize", (MAPS, None, None, known(2, 4, 9, 9))), "resizing in the mode nearest"),
    (Case("Slice", (MAPS, known(3), known(0), known(1), known(-1))), "in steps of -1"),
    (Case("CumSum", (MAPS, Known(2)), {"reverse": 1}), "backwards"),
    (Case("Reshape", (MAPS, Fed([2, -1], "int64"))), "must know before"),
    (Case("GatherND", ((2, 3, 4), Fed([[0, 1], [1, 2]], "int64")), {"batch": 1}), "unexpected keyword"),
    (Case("Relu", attributes={"slope": 2.0}), "unexpected keyword"),
]


@pytest.mark.parametrize(("case", "told"), REFUSED, ids=lambda item: getattr(item, "kind", None))
def test_what_pytorch_does_otherwise_is_refused(case: Case, told: str) -> None:
    model, _ = one_operator(case)
    with pytest.raises(RuntimeUnavailableError, match=told) as caught:
        network_of(model, "model.onnx")
    assert caught.value.where == "model.onnx, node single"
    assert case.kind in str(caught.value)
