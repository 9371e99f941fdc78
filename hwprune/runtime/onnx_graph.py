"""The operators of an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from hwprune.errors import GraphError, InputError
from hwprune.operators import Operator, TracedOperator, fuse
from hwprune.products import matrix_product
from hwprune.runtime.base import fixed_shape
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
    "Gelu": "gelu",
    "Softmax": "softmax",
    "BatchNormalization": "batch_norm",
    "LayerNormalization": "layer_norm",
    "InstanceNormalization": "group_norm",
    "Concat": "concat",
    "Pad": "pad",
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
#: ONNX operators whose results are sizes, not activations; what is computed from sizes alone costs nothing.
SIZE_OPERATORS = frozenset({"Shape", "Size"})


def read_operators(path: Path) -> tuple[Operator, ...]:
    """Reads the fused operators of an ONNX file, at batch 1.

    Args:
        path: The file.

    Returns:
        Operators in execution order; a kind that no table knows carries its ONNX name.

    Raises:
        InputError: If there is no such file, it is not ONNX, or more than the batch size is open.
        GraphError: If the shape of an activation cannot be inferred.
    """
    if not path.is_file():
        raise InputError("no such model file", where=path, expected="an ONNX file")
    try:
        model = onnx.load(str(path))
        _fix_batch(model)
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except InputError:
        raise
    except Exception as error:  # protobuf, checker and inference raise unrelated types
        raise InputError("not a readable ONNX file", where=path, got=f"{type(error).__name__}") from error
    shapes = _shapes(graph)
    constants = {item.name for item in graph.initializer}
    activations = {item.name for item in graph.input} - constants
    traced = []
    for node in graph.node:
        inputs = tuple(name for name in node.input if name in activations)
        if not inputs or node.op_type in SIZE_OPERATORS:
            continue
        activations.update(filter(None, node.output))  # one that nobody wants has no name
        operator = _operator(node, inputs, shapes, constants, path)
        traced.append(TracedOperator(operator, inputs, node.output[0]))
    return fuse(traced, [item.name for item in graph.output])


def _fix_batch(model: Any) -> None:
    """Sets an open batch size of the inputs to 1, and forgets what was inferred with it open."""
    for item in model.graph.input:
        dims = item.type.tensor_type.shape.dim
        shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        for dim, size in zip(dims, fixed_shape(item.name, shape, 1), strict=True):
            dim.dim_value = size
    del model.graph.value_info[:]
    for item in model.graph.output:
        item.type.tensor_type.ClearField("shape")


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    sizes = (item.type.tensor_type.shape.dim for item in graph.input if item.name not in shapes)
    shapes[BATCH] = next(((dims[0].dim_value,) for dims in sizes if dims), (1,))
    for item in (*graph.input, *graph.value_info, *graph.output):
        if item.type.tensor_type.HasField("shape"):
            shapes[item.name] = tuple(dim.dim_value for dim in item.type.tensor_type.shape.dim)
    return shapes


def _operator(
    node: Any, inputs: tuple[str, ...], shapes: Shapes, constants: set[str], path: Path
) -> Operator:
    builder = _BUILDERS.get(node.op_type)
    read = inputs if builder is None else filter(None, node.input)  # builders look at weights, too
    for name in (*read, node.output[0]):
        if name not in shapes or 0 in shapes[name]:
            raise GraphError(
                "the shape of an activation cannot be inferred",
                where=f"{path}, node {node.name or node.op_type}",
                expected="a static shape at batch 1",
                got=f"{name}: {shapes.get(name, 'unknown')}",
            )
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if builder is not None:
        operator = builder(node, inputs, shapes, attributes)
    else:
        operator = _shaped(SHAPED.get(node.op_type, node.op_type), shapes[node.output[0]])
    return replace(operator, name=node.name)


def _shaped(kind: str, shape: tuple[int, ...]) -> Operator:
    if len(shape) == 4:
        channels, rows, columns = shape[1:]
    elif len(shape) == 3:
        rows, channels, columns = shape[1], shape[2], 1
    else:
        channels, rows, columns = (shape[-1] if shape else 1), 1, 1
    return Operator(kind, channels, channels, rows, columns)


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


def _convolution(node: Any, inputs: tuple[str, ...], shapes: Shapes, attributes: dict[str, Any]) -> Operator:
    source, weight, result = (shapes[name] for name in (*node.input[:2], node.output[0]))
    transposed = node.op_type == "ConvTranspose"
    window = _window(weight[2:], source, attributes, transposed=transposed)
    groups = int(attributes.get("group", 1))
    return convolution(source, result, window, groups=groups, transposed=transposed)


def _matrix_product(
    node: Any, inputs: tuple[str, ...], shapes: Shapes, attributes: dict[str, Any]
) -> Operator:
    first, second = node.input[:2]
    left, right = shapes[first], shapes[second]
    if attributes.get("transA"):
        left = left[::-1]
    if attributes.get("transB"):
        right = right[::-1]
    left, right = (left if len(left) > 1 else (1, *left)), (right if len(right) > 1 else (*right, 1))
    return matrix_product(
        left, right, shapes[BATCH][0], left_computed=first in inputs, right_computed=second in inputs
    )


def _pool(kind: str) -> Callable[[Any, tuple[str, ...], Shapes, dict[str, Any]], Operator]:
    def build(node: Any, inputs: tuple[str, ...], shapes: Shapes, attributes: dict[str, Any]) -> Operator:
        source, result = shapes[inputs[0]], shapes[node.output[0]]
        return pooling(kind, source, result, _window(attributes["kernel_shape"], source, attributes))

    return build


def _global_pool(node: Any, inputs: tuple[str, ...], shapes: Shapes, attributes: dict[str, Any]) -> Operator:
    return _shaped("global_average_pool", shapes[inputs[0]])


def _expansion(node: Any, inputs: tuple[str, ...], shapes: Shapes, attributes: dict[str, Any]) -> Operator:
    source, result = shapes[inputs[0]], shapes[node.output[0]]
    return _shaped("identity" if source == result else "Expand", result)


_BUILDERS: dict[str, Callable[[Any, tuple[str, ...], Shapes, dict[str, Any]], Operator]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "Gemm": _matrix_product,
    "MatMul": _matrix_product,
    "MaxPool": _pool("max_pool"),
    "AveragePool": _pool("average_pool"),
    "GlobalAveragePool": _global_pool,
    "ReduceMean": _global_pool,
    "Expand": _expansion,
}
