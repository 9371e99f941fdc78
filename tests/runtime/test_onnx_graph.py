"""Reading operators from ONNX files: what depends on the inputs is priced or refused, never dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwprune.errors import GraphError
from hwprune.runtime.onnx_graph import read_operators

WEIGHTS = {
    "table": np.ones((100, 512), dtype=np.float32),
    "w": np.ones((512, 512), dtype=np.float32),
    "first": np.array([0], dtype=np.int64),
    "tiled": np.array([1, 3, 5, 512], dtype=np.int64),
    "same": np.array([1, 1, 5, 512], dtype=np.int64),
}
TOKENS = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", 5])
MAP = helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", 1, 5, 512])


def kinds(folder: Path, given: Any, *nodes: Any) -> list[str]:
    graph = helper.make_graph(
        nodes,
        "network",
        [given],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]
    path = folder / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return [operator.kind for operator in read_operators(path)]


def test_what_stands_behind_an_embedding_is_not_dropped(tmp_path: Path) -> None:
    embedding = helper.make_node("Gather", ["table", "tokens"], ["e"])
    product = helper.make_node("MatMul", ["e", "w"], ["m"])
    last = helper.make_node("Relu", ["m"], ["y"])
    assert kinds(tmp_path, TOKENS, embedding, product, last) == ["Gather", "linear"]
    unknown = helper.make_node("SomeUnknownOp", ["m"], ["y"], domain="my", name="unknown")
    with pytest.raises(GraphError, match="node unknown"):
        kinds(tmp_path, TOKENS, embedding, product, unknown)


def test_a_part_of_an_activation_is_an_activation(tmp_path: Path) -> None:
    part = helper.make_node("Gather", ["map", "first"], ["p"], axis=2)
    product = helper.make_node("MatMul", ["p", "w"], ["y"])
    assert kinds(tmp_path, MAP, part, product) == ["Gather", "linear"]


def test_an_expansion_is_free_where_it_repeats_nothing(tmp_path: Path) -> None:
    product = helper.make_node("MatMul", ["e", "w"], ["y"])
    for shape, expected in (("same", ["linear"]), ("tiled", ["Expand", "linear"])):
        expansion = helper.make_node("Expand", ["map", shape], ["e"])
        assert kinds(tmp_path, MAP, expansion, product) == expected


def test_sizes_cost_nothing(tmp_path: Path) -> None:
    nodes = (
        helper.make_node("Shape", ["map"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["n"]),
        helper.make_node("Concat", ["n", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["map", "target"], ["r"]),
        helper.make_node("Relu", ["r"], ["y"]),
    )
    minus = helper.make_node("Constant", [], ["minus"], value_ints=[5, 512])
    assert kinds(tmp_path, MAP, minus, *nodes) == ["relu"]


def test_nodes_are_put_together_only_where_nothing_else_reads_what_is_between(tmp_path: Path) -> None:
    sigmoid = helper.make_node("Sigmoid", ["map"], ["s"])
    assert kinds(tmp_path, MAP, sigmoid, helper.make_node("Mul", ["map", "s"], ["y"])) == ["silu"]
    product, total = helper.make_node("Mul", ["map", "s"], ["p"]), helper.make_node("Add", ["p", "s"], ["y"])
    assert kinds(tmp_path, MAP, sigmoid, product, total) == ["sigmoid", "mul", "add"]


def test_an_error_function_with_other_numbers_is_no_gelu(tmp_path: Path) -> None:
    for root, expected in ((2**0.5, ["gelu"]), (2.0, ["mul", "Erf", "add", "mul", "mul"])):
        numbers = [
            helper.make_node("Constant", [], [name], value_float=value)
            for name, value in (("root", root), ("one", 1.0), ("half", 0.5))
        ]
        nodes = (
            helper.make_node("Div", ["map", "root"], ["d"]),
            helper.make_node("Erf", ["d"], ["e"]),
            helper.make_node("Add", ["e", "one"], ["a"]),
            helper.make_node("Mul", ["map", "a"], ["m"]),
            helper.make_node("Mul", ["m", "half"], ["y"]),
        )
        assert kinds(tmp_path, MAP, *numbers, *nodes) == expected
