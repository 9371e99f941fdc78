"""One node of an ONNX file as the operator that a table prices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from hwprune.activations import layer_norm, mean, shaped, softmax
from hwprune.errors import GraphError
from hwprune.operators import Operator
from hwprune.products import matrix_product
from hwprune.windows import Window, convolution, pooling

Shapes = Mapping[str, tuple[int, ...]]

#: Where the number of images stands among the shapes; the name of no value.
BATCH = ""

#: ONNX operators that need nothing but the shape of their result.
SHAPED = {
    "Add": "add",
    "Sub": "add",
    "Mul": "mul",
    "Div": "mul",
    "Relu": "relu",
    "Clip": "clip",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "LeakyRelu": "leaky_relu",
    "HardSigmoid": "hard_sigmoid",
    "HardSwish": "hard_swish",
    "Elu": "elu",
    "Silu": "silu",
    "InstanceNormalization": "instance_norm",
    "BatchNormalization": "batch_norm",
    "GroupNormalization": "group_norm",
    "Concat": "concat",
    "Split": "split",
    "Transpose": "transpose",
    "Reshape": "identity",
    "Flatten": "identity",
    "Squeeze": "identity",
    "Unsqueeze": "identity",
    "Identity": "identity",
    "QuantizeLinear": "identity",
    "DequantizeLinear": "identity",
    "Dropout": "identity",
    "Cast": "identity",
}


@dataclass(frozen=True, slots=True)
class NodeCall:
    """A node with what is known around it.

    Attributes:
        node: The node.
        inputs: The activations that it reads.
        shapes: Name to shape, of every value of the graph.
        attributes: Name to value.
        constants: Name to tensor, of every value that is one.
    """

    node: Any
    inputs: tuple[str, ...]
    shapes: Shapes
    attributes: Mapping[str, Any]
    constants: Mapping[str, Any]

    @property
    def batch(self) -> int:
        """Images that the file is given."""
        return self.shapes[BATCH][0]

    @property
    def source(self) -> tuple[int, ...]:
        """Shape of the first activation that it reads."""
        return self.shapes[self.inputs[0]]

    @property
    def result(self) -> tuple[int, ...]:
        """Shape of what it writes."""
        return self.shapes[self.node.output[0]]

    @property
    def adds_numbers_of_channels(self) -> bool:
        """Whether it reads one activation and one row of constants."""
        others = [name for name in self.node.input if name not in self.inputs]
        return len(others) == 1 and len(self.shapes.get(others[0], ())) == 1


def call_of(
    node: Any, inputs: tuple[str, ...], shapes: Shapes, constants: Mapping[str, Any], path: Path
) -> NodeCall:
    """A node with what is known around it.

    Args:
        node: The node.
        inputs: The activations that it reads.
        shapes: Name to shape.
        constants: Name to tensor.
        path: The file, for errors.

    Raises:
        GraphError: If a shape is not known that a price depends on.
    """
    read = filter(None, node.input) if node.op_type in _WITH_WEIGHTS else inputs
    for name in (*read, node.output[0]):
        if name not in shapes or 0 in shapes[name]:
            raise GraphError(
                "the shape of an activation cannot be inferred",
                where=f"{path}, node {node.name or node.op_type}",
                expected="a static shape at batch 1",
                got=f"{name}: {shapes.get(name, 'unknown')}",
            )
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return NodeCall(node, inputs, shapes, attributes, constants)


def operator_of(call: NodeCall) -> Operator:
    """The operator that a node stands for, named after it."""
    kind = call.node.op_type
    builder = _BUILDERS.get(kind)
    operator = builder(call) if builder else shaped(SHAPED.get(kind, kind), call.result, call.batch)
    return replace(operator, name=call.node.name)


def density_of(call: NodeCall) -> float:
    """The part of the weights that are not zero; all of them where the file computes them."""
    factors = [name for name in call.node.input[:2] if name not in call.inputs]
    if not factors or factors[0] not in call.constants:
        return 1.0
    weights = numpy_helper.to_array(call.constants[factors[0]])
    return max(int(np.count_nonzero(weights)), 1) / int(weights.size)


#: From a node to its operator.
Builder = Callable[[NodeCall], Operator]


def _window(
    kernel: Sequence[int], source: tuple[int, ...], attributes: Mapping[str, Any], *, transposed: bool = False
) -> Window:
    strides, dilations = (
        tuple(attributes.get(name) or (1,) * len(kernel)) for name in ("strides", "dilations")
    )
    pads = tuple(attributes.get("pads", ()))
    automatic = attributes.get("auto_pad", b"NOTSET").decode()
    if automatic.startswith("SAME"):
        reaches = [step * (size - 1) + 1 for size, step in zip(kernel, dilations, strict=True)]
        totals = [
            max(reach - stride if transposed else (-(-size // stride) - 1) * stride + reach - size, 0)
            for size, stride, reach in zip(source[2:], strides, reaches, strict=True)
        ]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = (*less, *more) if automatic == "SAME_UPPER" else (*more, *less)
    return Window(kernel, strides, pads, dilations)


def _convolution(call: NodeCall) -> Operator:
    weight = call.shapes[call.node.input[1]]
    transposed = call.node.op_type == "ConvTranspose"
    window = _window(weight[2:], call.source, call.attributes, transposed=transposed)
    groups = int(call.attributes.get("group", 1))
    return convolution(call.source, call.result, window, groups=groups, transposed=transposed)


def _matrix_product(call: NodeCall) -> Operator:
    first, second = call.node.input[:2]
    left, right = call.shapes[first], call.shapes[second]
    if call.attributes.get("transA"):
        left = left[::-1]
    if call.attributes.get("transB"):
        right = right[::-1]
    left, right = (left if len(left) > 1 else (1, *left)), (right if len(right) > 1 else (*right, 1))
    return matrix_product(
        left, right, call.batch, left_computed=first in call.inputs, right_computed=second in call.inputs
    )


def _pool(kind: str) -> Builder:
    def build(call: NodeCall) -> Operator:
        window = _window(call.attributes["kernel_shape"], call.source, call.attributes)
        return pooling(kind, call.source, call.result, window)

    return build


def _global_pool(call: NodeCall) -> Operator:
    return shaped("global_average_pool", call.source, call.batch)


def _mean(call: NodeCall) -> Operator:
    axes = call.attributes.get("axes")
    if axes is None and len(call.node.input) > 1 and call.node.input[1] in call.constants:
        axes = numpy_helper.to_array(call.constants[call.node.input[1]]).tolist()
    return mean(call.source, axes or range(len(call.source)), call.batch)


def _softmax(call: NodeCall) -> Operator:
    return softmax(call.result, int(call.attributes.get("axis", -1)), call.batch)


def _layer_norm(call: NodeCall) -> Operator:
    axis, rank = int(call.attributes.get("axis", -1)), len(call.result)
    return layer_norm(call.result, rank - axis % rank, call.batch)


def _resize(call: NodeCall) -> Operator:
    mode = call.attributes.get("mode", b"nearest").decode()
    flat = len(call.result) == 4 and call.source[:2] == call.result[:2]
    kinds = {"nearest": "resize", "linear": "bilinear_resize"} if flat else {}
    return shaped(kinds.get(mode, f"Resize ({mode})"), call.result, call.batch)


def _slice(call: NodeCall) -> Operator:
    if call.source == call.result:
        return shaped("identity", call.result, call.batch)
    steps = call.node.input[4] if len(call.node.input) > 4 else ""
    held = call.constants.get(steps)
    plain = not steps or (held is not None and bool((numpy_helper.to_array(held) == 1).all()))
    return shaped("slice" if plain else "strided_slice", call.result, call.batch)


def _gather(call: NodeCall) -> Operator:
    # One index without a dimension of its own cuts a part out; all others look rows up.
    data, index = call.node.input[:2]
    part = data in call.inputs and index in call.constants and not call.constants[index].dims
    return shaped("slice" if part else "Gather", call.result, call.batch)


def _gelu(call: NodeCall) -> Operator:
    exact = call.attributes.get("approximate", b"none") == b"none"
    return shaped("gelu" if exact else "gelu_by_tanh", call.result, call.batch)


def _pad(call: NodeCall) -> Operator:
    mode = call.attributes.get("mode", b"constant").decode()
    return shaped("pad" if mode == "constant" else f"Pad ({mode})", call.result, call.batch)


def _expansion(call: NodeCall) -> Operator:
    return shaped("identity" if call.source == call.result else "Expand", call.result, call.batch)


#: ONNX operators whose price depends on the shapes of their weights.
_WITH_WEIGHTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_BUILDERS: dict[str, Builder] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": _matrix_product,
    "MatMul": _matrix_product,
    "MaxPool": _pool("max_pool"),
    "AveragePool": _pool("average_pool"),
    "GlobalAveragePool": _global_pool,
    "ReduceMean": _mean,
    "Softmax": _softmax,
    "LayerNormalization": _layer_norm,
    "Resize": _resize,
    "Slice": _slice,
    "Gather": _gather,
    "Gelu": _gelu,
    "Expand": _expansion,
    "Pad": _pad,
}
