"""The operators of an ONNX file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from hwprune.errors import InputError
from hwprune.operators import Operator, TracedOperator, fuse
from hwprune.runtime.base import fixed_shape
from hwprune.runtime.onnx_operators import BATCH, call_of, density_of, operator_of
from hwprune.runtime.onnx_patterns import constants_of, fold_patterns

#: ONNX operators whose results are sizes, not activations; what is computed from sizes alone costs nothing.
SIZE_OPERATORS = frozenset({"Shape", "Size"})
_ALIAS = Operator("identity", 1, 1)


def read_operators(
    path: Path, *, batch: int | None = None, count_zeros: bool = False
) -> tuple[Operator, ...]:
    """Reads the fused operators of an ONNX file, as they work on one image.

    Args:
        path: The file.
        batch: Images of a run that prices are wanted for; a file that fixes another number is refused.
            ``None`` for any.
        count_zeros: Whether operators get the part of their weights that are not zero.

    Returns:
        Operators in execution order; a kind that no table knows carries its ONNX name.

    Raises:
        InputError: If there is no such file, it is not ONNX, more than the batch size is open, or that is
            fixed to another one.
        GraphError: If the shape of an activation cannot be inferred.
    """
    graph = _read(path, batch)
    shapes, constants, activations = _shapes(graph), constants_of(graph), _activations(graph)
    nodes = fold_patterns(graph, activations)
    read = {name for node in nodes for name in node.input}
    traced = []
    for node in nodes:
        inputs = tuple(name for name in node.input if name in activations)
        if not inputs or node.op_type in SIZE_OPERATORS:
            continue
        call = call_of(node, inputs, shapes, constants, path)
        operator = operator_of(call)
        if count_zeros and operator.weighted:
            operator = replace(operator, density=density_of(call))
        bias = node.op_type == "Add" and call.adds_numbers_of_channels
        traced.append(TracedOperator(operator, inputs, node.output[0], bias))
        traced += [
            TracedOperator(_ALIAS, (node.output[0],), name) for name in node.output[1:] if name in read
        ]
    return fuse(traced, [item.name for item in graph.output])


def _read(path: Path, batch: int | None) -> Any:
    """The graph of a file, with the shapes of what it computes for one image or for the fixed batch size."""
    if not path.is_file():
        raise InputError("no such model file", where=path, expected="an ONNX file")
    try:
        model = onnx.load(str(path))
        if not model.graph.output:
            raise InputError("the file holds no network", where=path, expected="an ONNX file with an output")
        _check_batch(model.graph, path, batch)
        _fix_batch(model)
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except InputError:
        raise
    except Exception as error:  # protobuf, checker and inference raise unrelated types
        raise InputError("not a readable ONNX file", where=path, got=f"{type(error).__name__}") from error


def _activations(graph: Any) -> set[str]:
    """The values that depend on the inputs, other than by their sizes."""
    found = {item.name for item in graph.input} - {item.name for item in graph.initializer}
    for node in graph.node:
        if node.op_type not in SIZE_OPERATORS and not found.isdisjoint(node.input):
            found.update(filter(None, node.output))  # one that nobody wants has no name
    return found


def _check_batch(graph: Any, path: Path, batch: int | None) -> None:
    """Refuses a file that runs another number of images than prices are wanted for."""
    weights = {item.name for item in graph.initializer}
    inputs = [item.type.tensor_type.shape.dim for item in graph.input if item.name not in weights]
    first = inputs[0][0] if inputs and inputs[0] else None
    if batch is None or first is None or not first.HasField("dim_value") or first.dim_value == batch:
        return
    raise InputError(
        "the file fixes its batch size, and the device's latencies are those of another",
        where=path,
        expected=f"{batch}, or an open one",
        got=first.dim_value,
        hint="export the network with an open batch size, or take a profile that was built with "
        f"--batch {first.dim_value}",
    )


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
