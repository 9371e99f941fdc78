"""Operator models on 8 bits: what is quantised in a network is quantised in them, edges included."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hwprune.runtime.operator_models import OperatorModel
from hwprune.runtime.quantize import quantize

#: Scale and zero point of the values at an edge that the quantiser leaves in single precision.
_SCALE, _ZERO_POINT = np.float32(0.03), np.uint8(128)
#: Conversions are called after the value that they convert, or after the node whose weights they are; copies
#: between layouts get a number.
_CONVERSION = re.compile(r"([a-z]+)(\d+)(?:_\d+)?_(?:(Quantize|Dequantize)Linear|(?:weight|bias)_dq)")
_COPY_NUMBER = re.compile(r"_token_\d+$")
#: OpenVINO's name for a transposed convolution between conversions; the rest of its branch runs after it.
_RENAMED = re.compile(r"ConvolutionBackpropData_\d+")
_COMPUTING, _WRITTEN = re.compile(r"(?:fused )?op(\d+)_\d+"), re.compile(r"y(\d+)")
#: Conversions that count are numbered from here, above the nodes of any branch.
_FIRST_CONVERSION = 100
#: What feeds a fused sum is no part of the operator.
_HELPERS = ("h", "r")


def quantized(model: OperatorModel) -> OperatorModel:
    """The same operators, with everything that goes into and comes out of them quantised.

    What the quantiser leaves in single precision (a softmax, a normalisation) stands between conversions,
    as it does in a network whose other operators work on integers.

    Args:
        model: In single precision.

    Raises:
        RuntimeUnavailableError: If it cannot be quantised.
    """
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        source, target = Path(folder) / "operators.onnx", Path(folder) / "quantised.onnx"
        source.write_bytes(model.content)
        quantize(source, target, [model.feed], isolated=True)
        proto = onnx.load(str(target))
    _quantise_edges(proto.graph)
    return replace(model, content=proto.SerializeToString())


def _quantise_edges(graph: Any) -> None:
    """Puts a pair of conversions at every input and output that has none."""
    readers = {name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.input}
    converted = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    parameters = ["edge_scale", "edge_zero_point"]
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value), name)
        for value, name in zip((_SCALE, _ZERO_POINT), parameters, strict=True)
    )
    for item in graph.input:
        if item.name not in readers:
            inner = f"{item.name}_quantised"
            for node in graph.node:
                node.input[:] = [inner if name == item.name else name for name in node.input]
            graph.node.extend(_pair(item.name, item.name, inner, parameters))
    for item in graph.output:
        if item.name not in converted:
            inner = f"{item.name}_single"
            for node in graph.node:
                node.output[:] = [inner if name == item.name else name for name in node.output]
            graph.node.extend(_pair(item.name, inner, item.name, parameters))


def _pair(name: str, source: str, target: str, parameters: list[str]) -> list[Any]:
    between = f"{name}_bytes"
    return [
        helper.make_node("QuantizeLinear", [source, *parameters], [between], f"{name}_QuantizeLinear"),
        helper.make_node("DequantizeLinear", [between, *parameters], [target], f"{name}_DequantizeLinear"),
    ]


def without_edges(samples: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Kernels of a quantised operator model without the conversions that only its edges need.

    A network converts its input and its output; between its operators there are bytes. What
    converts around an operator that works in single precision does count, as long as the operator itself
    has a time.

    Args:
        samples: Durations by the kernel's name.

    Returns:
        Durations by names that :meth:`OperatorModel.operator_of` understands.

    >>> sorted(without_edges({
    ...     "x0_QuantizeLinear": [1.0], "op0_0_token_6": [9.0], "y0_DequantizeLinear": [1.0],
    ...     "x1_DequantizeLinear": [1.0], "op1_0": [5.0], "y1_QuantizeLinear": [1.0], "y1": [1.0],
    ... }))
    ['op0_0', 'op1_0', 'op1_101', 'op1_103']
    """
    named = {_COPY_NUMBER.sub("", kernel): durations for kernel, durations in samples.items()}
    branches = _branches(list(named))
    computed = {match[1] for kernel in named if (match := _COMPUTING.fullmatch(kernel))}
    inner: dict[str, list[float]] = {}
    for kernel, durations in named.items():
        conversion, written = _CONVERSION.fullmatch(kernel), _WRITTEN.fullmatch(kernel)
        if _RENAMED.fullmatch(kernel):
            inner[f"op{branches[kernel]}_{_FIRST_CONVERSION + len(inner)}"] = durations
        elif conversion is not None:
            if conversion[2] in computed and not _at_edge(conversion[1], conversion[3]):
                inner[f"op{conversion[2]}_{_FIRST_CONVERSION + len(inner)}"] = durations
        elif written is None or written[1] not in computed:
            inner[kernel] = durations
    return inner


def _branches(kernels: list[str]) -> dict[str, str]:
    """Kernel to the branch of the next one, itself included, whose name tells it."""
    found, following = {}, ""
    for kernel in reversed(kernels):
        match = _COMPUTING.fullmatch(kernel) or _WRITTEN.fullmatch(kernel)
        following = match[1] if match else following
        found[kernel] = following
    return found


def _at_edge(value: str, direction: str | None) -> bool:
    return value in _HELPERS or (value, direction) in {("x", "Quantize"), ("y", "Dequantize")}
