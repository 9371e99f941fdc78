"""ONNX files as networks that PyTorch runs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import fx, nn

from hwprune.errors import RuntimeUnavailableError
from hwprune.runtime.base import Array
from hwprune.runtime.eager import layout, pointwise, windows
from hwprune.runtime.eager.sizes import SIZES, sizes_of
from hwprune.runtime.eager.table import TRANSLATIONS, Translation

#: Where the name of the ONNX value that a step of the network computes is kept: in the step's ``meta``.
VALUE = "onnx_value"
#: The oldest operator set that is translated as it is; older ones are brought up to it.
OLDEST_OPSET = 18
#: What is raised where an operator is used in a way that is not translated.
_UNKNOWN = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
#: Element types that sizes have.
_INTEGERS = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
#: The modules whose import fills the table.
_ENTERED = (layout, pointwise, windows)


def network_of(model: onnx.ModelProto, where: object) -> fx.GraphModule:
    """The network of an ONNX model in PyTorch, in evaluation mode.

    Everything that does not depend on the inputs is computed here, and sizes are numbers in it, not tensors.

    Args:
        model: Of any operator set; not touched.
        where: The file, for errors.

    Returns:
        A module that takes the inputs of the model in their order and returns a tuple of the outputs.
        At each of its calls stands the name of the ONNX value that it helps to compute (:func:`value_of`).

    Raises:
        RuntimeUnavailableError: If an operator, or its way of working, is not known here.
    """
    translator = _Translator(_of_known_opset(model, where), where)
    return translator.network()


def read_model(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file.

    Raises:
        RuntimeUnavailableError: If it is not ONNX.
    """
    try:
        return onnx.load(str(path))
    except Exception as error:  # protobuf raises unrelated types
        raise RuntimeUnavailableError(
            "not a readable ONNX file", where=path, got=type(error).__name__
        ) from error


def _of_known_opset(model: onnx.ModelProto, where: object) -> onnx.ModelProto:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("", OLDEST_OPSET) >= OLDEST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OLDEST_OPSET)
    except Exception as error:  # the converter raises unrelated types
        raise RuntimeUnavailableError(
            "the operators of the model are too old and cannot be brought up to date",
            where=where,
            expected=f"the operator set {OLDEST_OPSET} or newer",
            got=versions[""],
        ) from error


class _Tracer(fx.proxy.GraphAppendingTracer):
    """Notes at every step of the network which ONNX value it computes."""

    value = ""

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta[VALUE] = self.value
        return node


#: A tensor while the network runs, a constant, or sizes (an array of objects).
_Value = fx.Proxy | Array


class _Translator:
    def __init__(self, model: onnx.ModelProto, where: object) -> None:
        self._model, self._where = model, where
        self._opsets = {entry.domain: entry.version for entry in model.opset_import}
        self._root, self._steps = nn.Module(), fx.Graph()
        self._tracer = _Tracer(self._steps)
        self._weights: dict[str, fx.Proxy] = {}
        graph = model.graph
        self._values: dict[str, _Value] = {
            item.name: numpy_helper.to_array(item) for item in graph.initializer
        }
        self._shapes = {
            item.name: _shape_of(item) for item in (*graph.input, *graph.value_info, *graph.output)
        }

    def network(self) -> fx.GraphModule:
        """The whole network."""
        graph = self._model.graph
        for item in graph.input:
            if item.name not in self._values:
                name = _identifier(item.name)
                self._values[item.name] = self._tracer.create_proxy("placeholder", name, (), {}, name=name)
        for node in graph.node:
            self._tracer.value = node.output[0]
            try:
                self._translate(node)
            except _UNKNOWN as error:
                raise RuntimeUnavailableError(
                    f"PyTorch cannot run this {node.op_type}",
                    where=f"{self._where}, node {node.name or node.output[0]}",
                    got=error,
                ) from error
        outputs = tuple(self._tensor(item.name) for item in graph.output)
        self._tracer.create_proxy("output", "output", (outputs,), {})
        return fx.GraphModule(self._root, self._steps).eval()

    def _translate(self, node: Any) -> None:
        inputs = [self._values[name] if name else None for name in node.input]
        attributes = {item.name: _attribute(item) for item in node.attribute}
        if node.op_type == "Shape" and isinstance(inputs[0], fx.Proxy):
            known = self._shapes.get(node.input[0])
            if known is None:
                raise ValueError("the number of dimensions is not in the file")
            outputs: Sequence[Any] = [sizes_of(inputs[0], known, **attributes)]
        elif node.op_type == "Constant" or (inputs and all(map(_is_constant, inputs))):
            known_inputs = {name: self._values[name] for name in node.input if name}
            outputs = ReferenceEvaluator(node, opsets=self._opsets).run(None, known_inputs)
        elif node.op_type in SIZES and _are_sizes(inputs) and attributes.get("to", _INTEGERS[0]) in _INTEGERS:
            outputs = [SIZES[node.op_type](*inputs, **attributes)]
        else:
            result = self._call(node, _translation(node, self._where), inputs, attributes)
            outputs = result if len(node.output) > 1 else [_only(result)]
        self._values.update(zip(node.output, outputs, strict=False))

    def _call(
        self, node: Any, translation: Translation, inputs: Sequence[_Value | None], attributes: dict[str, Any]
    ) -> Any:
        arguments: list[Any] = [
            None if item is None else _static(item) if place in translation.static else self._tensor(name)
            for place, (name, item) in enumerate(zip(node.input, inputs, strict=True))
        ]
        if translation.variadic:
            arguments = [arguments]
        if translation.outputs:
            attributes["outputs"] = len(node.output)
        if translation.whole:
            target = translation.function
            inspect.signature(target).bind(*arguments, **attributes)
            return self._tracer.create_proxy("call_function", target, tuple(arguments), attributes)
        return translation.function(*arguments, **attributes)

    def _tensor(self, name: str) -> fx.Proxy:
        """A value as a tensor: constants become buffers, sizes are put into one."""
        value = self._values[name]
        if isinstance(value, fx.Proxy):
            return value
        if value.dtype == object:
            return self._tracer.create_proxy("call_function", torch.tensor, (value.tolist(),), {})
        if name not in self._weights:
            attribute = f"{_identifier(name)}_{len(self._weights)}"
            self._root.register_buffer(attribute, torch.from_numpy(np.array(value)))
            self._weights[name] = self._tracer.create_proxy("get_attr", attribute, (), {})
        return self._weights[name]


def _translation(node: Any, where: object) -> Translation:
    if node.op_type not in TRANSLATIONS or node.domain not in ("", "ai.onnx"):
        raise RuntimeUnavailableError(
            "PyTorch has no translation of an operator here",
            where=f"{where}, node {node.name or node.output[0]}",
            expected=f"one of {', '.join(sorted(TRANSLATIONS))}",
            got=f"{node.domain}.{node.op_type}".lstrip("."),
            hint="add an entry in hwprune/runtime/eager",
        )
    return TRANSLATIONS[node.op_type]


def _is_constant(value: _Value | None) -> bool:
    return value is None or (isinstance(value, np.ndarray) and value.dtype != object)


def _are_sizes(values: Sequence[_Value | None]) -> bool:
    """Whether the values are sizes, or integers that sizes are computed with."""
    return not any(
        isinstance(value, fx.Proxy) or (value is not None and value.dtype.kind not in "Oi")
        for value in values
    )


def _static(value: _Value) -> Any:
    """A constant or sizes as nested lists of numbers."""
    if isinstance(value, fx.Proxy):
        raise ValueError("something is computed by the network that PyTorch must know before")
    return value.tolist()


def _only(result: Any) -> Any:
    return result[0] if isinstance(result, list) else result


def _attribute(item: Any) -> Any:
    value = onnx.helper.get_attribute_value(item)
    return value.decode() if isinstance(value, bytes) else value


def _identifier(name: str) -> str:
    """A name that Python accepts."""
    return re.sub(r"\W", "_", f"_{name}" if name[:1].isdigit() else name)


def _shape_of(item: Any) -> tuple[int | None, ...] | None:
    kind = item.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim)


def value_of(step: fx.Node) -> str:
    """The name of the ONNX value that a step of a network computes."""
    noted: Mapping[str, Any] = step.meta
    return str(noted[VALUE])
