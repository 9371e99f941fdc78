"""Folds zeros out of an ONNX graph: a network that lost a residual branch adds zeros where the branch was."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

#: ONNX operators that are zero where the first thing they read is zero.
KEEPERS = frozenset(
    {
        "Relu", "Gelu", "Tanh", "LeakyRelu", "Elu", "HardSwish", "Neg", "Reshape", "Transpose", "Flatten",
        "Squeeze", "Unsqueeze", "Expand", "Identity", "Cast", "Slice", "Dropout", "MaxPool", "AveragePool",
        "GlobalAveragePool", "ReduceMean", "ReduceSum",
    }
)  # fmt: skip


def fold_zeros(model: onnx.ModelProto, weights: Collection[str] = ()) -> None:
    """Drops sums with zeros, and rectifiers of what is rectified already, from a model, in place.

    Only a sum whose other operand has the shape of the result goes; the names and types of the model's inputs
    and outputs stay. A graph with branches of its own (``If``, ``Loop``) stays as it is.

    Args:
        model: As exported, with the shapes of its values.
        weights: Names of initialisers that are not taken for zeros whatever they hold: a bias that is zero
            before training would make the network faster than it is going to be.
    """
    graph = model.graph
    if any(item.type == onnx.AttributeProto.GRAPH for node in graph.node for item in node.attribute):
        return
    stand_ins = _stand_ins(graph, weights)
    if not stand_ins:
        return
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = stand_ins.get(name, name)
    # What leaves the network keeps its name: whoever writes it may write the other value as well.
    returned = {item.name for item in graph.output} & stand_ins.keys()
    for name in returned:
        graph.node.append(onnx.helper.make_node("Identity", [stand_ins[name]], [name]))
    _drop(graph, [node for node in graph.node if _replaced(node, stand_ins, returned)])
    _drop_unread(graph)


def _replaced(node: Any, stand_ins: dict[str, str], returned: set[str]) -> bool:
    identity = node.op_type == "Identity" and node.output[0] in returned
    return node.output[0] in stand_ins and not identity


def _stand_ins(graph: Any, weights: Collection[str]) -> dict[str, str]:
    """Value to the value of an earlier node that it equals."""
    constants = [item for item in graph.initializer if item.name not in weights]
    zeros = {item.name for item in constants if not numpy_helper.to_array(item).any()}
    shapes = dict(_shapes(graph))
    rectified: set[str] = set()
    found: dict[str, str] = {}
    for node in graph.node:
        if node.domain:
            continue
        inputs = [found.get(name, name) for name in node.input]
        (output, *_others) = node.output
        if _is_zero(node, inputs, zeros):
            zeros.add(output)
        elif node.op_type == "Relu" and inputs[0] in rectified:
            found[output] = inputs[0]
        elif node.op_type == "Add" and zeros.intersection(inputs):
            other = next(name for name in inputs if name not in zeros)
            if shapes.get(other) is not None and shapes.get(other) == shapes.get(output):
                found[output] = other
        elif node.op_type == "Relu":
            rectified.add(output)
    return found


def _is_zero(node: Any, inputs: list[str], zeros: set[str]) -> bool:
    if node.op_type in KEEPERS:
        return inputs[0] in zeros
    if node.op_type == "Add":
        return zeros.issuperset(inputs)
    if node.op_type == "ConstantOfShape":
        values = [numpy_helper.to_array(item.t) for item in node.attribute if item.name == "value"]
        return not any(np.any(value) for value in values)
    return node.op_type == "Mul" and bool(zeros.intersection(inputs))


def _shapes(graph: Any) -> Iterator[tuple[str, tuple[int | str, ...]]]:
    """Every value whose shape is known in full: an open dimension by its name."""
    for item in graph.initializer:
        yield item.name, tuple(item.dims)
    for item in (*graph.input, *graph.value_info, *graph.output):
        kind = item.type.tensor_type
        dims = tuple(dim.dim_value or dim.dim_param for dim in kind.shape.dim)
        if kind.HasField("shape") and all(dims):
            yield item.name, dims


def _drop(graph: Any, nodes: list[Any]) -> None:
    for node in nodes:
        graph.node.remove(node)


def _drop_unread(graph: Any) -> None:
    """Drops nodes, initialisers and shapes of values that nobody reads any more."""
    read = {item.name for item in graph.output}
    dead = []
    for node in reversed(graph.node):
        if read.isdisjoint(node.output):
            dead.append(node)
        else:
            read.update(node.input)
    _drop(graph, dead)
    written = {name for node in graph.node for name in node.output}
    for item in [item for item in graph.initializer if item.name not in read]:
        graph.initializer.remove(item)
    for item in [item for item in graph.value_info if item.name not in read | written]:
        graph.value_info.remove(item)
