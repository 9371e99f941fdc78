"""Operators that exports write as several nodes, put together to the one that tables know."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

#: How far the constants of an activation may be from those that define it.
_TOLERANCE = 1e-4
#: How the numbers of a constant may be given besides as a tensor.
_NUMBERS = frozenset({"value_float", "value_floats", "value_int", "value_ints"})


def fold_patterns(graph: Any, activations: Collection[str]) -> list[Any]:
    """The nodes of a graph, with one for each of the operators that are written as several.

    Args:
        graph: An ONNX graph; not touched.
        activations: Names of the values that depend on its inputs.

    Returns:
        Nodes in execution order. Those that stand for several are called ``Silu``, ``Gelu`` and
        ``GroupNormalization``, after what they compute, and write what the last of them wrote.
    """
    nodes = list(graph.node)
    around = _Neighbours(nodes, graph, activations)
    replaced: dict[int, Any] = {}
    for node in nodes:
        pattern = _PATTERNS.get(node.op_type)
        found = pattern(node, around) if pattern is not None and id(node) not in replaced else None
        if found is not None:
            replaced |= {id(part): None for part in found.parts}
            replaced[id(found.parts[0])] = found.whole
    left = [replaced.get(id(node), node) for node in nodes]
    return [node for node in left if node is not None]


def constants_of(graph: Any) -> dict[str, Any]:
    """The tensors that a graph holds, by name: its initialisers and constants."""
    held = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            (given,) = node.attribute
            value = helper.get_attribute_value(given)
            if given.name == "value":
                held[node.output[0]] = value
            elif given.name in _NUMBERS:
                held[node.output[0]] = numpy_helper.from_array(np.array(value))
    return held


@dataclass(frozen=True, slots=True)
class _Found:
    """One operator: the node that stands for it, and those that it is made of, the first one first."""

    whole: Any
    parts: Sequence[Any]


class _Neighbours:
    """Who writes and who reads the values of a graph."""

    def __init__(self, nodes: Sequence[Any], graph: Any, activations: Collection[str]) -> None:
        self._writers = {name: node for node in nodes for name in node.output}
        self._readers: dict[str, list[Any]] = {}
        for node in nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._results = {item.name for item in graph.output}
        self._constants = constants_of(graph)
        self._activations = activations

    def writer(self, value: str, *kinds: str) -> Any:
        """The node of one of ``kinds`` that writes a value which nothing but one node reads, or ``None``."""
        node = self._writers.get(value)
        return node if node is not None and node.op_type in kinds and self._read_once(value) else None

    def reader(self, node: Any, kind: str) -> Any:
        """The node of ``kind`` that alone reads what another one writes, or ``None``."""
        value = node.output[0]
        if not self._read_once(value) or self._readers[value][0].op_type != kind:
            return None
        return self._readers[value][0]

    def with_constants(self, node: Any) -> bool:
        """Whether there is a node and it reads one activation only."""
        return node is not None and sum(name in self._activations for name in node.input) == 1

    def numbers(self, value: str) -> list[float]:
        """A constant as a flat list; nothing where it is none."""
        tensor = self._constants.get(value)
        return [] if tensor is None else [float(each) for each in numpy_helper.to_array(tensor).ravel()]

    def reads_number(self, node: Any, number: float) -> bool:
        """Whether there is a node that reads one activation and that number."""
        return self.with_constants(node) and any(
            len(found) == 1 and math.isclose(found[0], number, rel_tol=_TOLERANCE)
            for found in map(self.numbers, node.input)
        )

    def _read_once(self, value: str) -> bool:
        return len(self._readers.get(value, [])) == 1 and value not in self._results


def _silu(sigmoid: Any, around: _Neighbours) -> _Found | None:
    """The product of x and its logistic function."""
    product, source = around.reader(sigmoid, "Mul"), sigmoid.input[0]
    if product is None or source not in product.input:
        return None
    return _Found(_node("Silu", sigmoid, [source], product.output), [sigmoid, product])


def _gelu(erf: Any, around: _Neighbours) -> _Found | None:
    """Half of x times one more than the error function of x over the root of 2."""
    scaled, shifted = around.writer(erf.input[0], "Div", "Mul"), around.reader(erf, "Add")
    if scaled is None or not around.reads_number(shifted, 1.0):
        return None
    root = math.sqrt(2) if scaled.op_type == "Div" else math.sqrt(0.5)
    if not around.reads_number(scaled, root):
        return None
    source = next(name for name in scaled.input if not around.numbers(name))
    parts, last = [scaled, erf, shifted], shifted
    halved = multiplied = False
    while not (halved and multiplied):
        product = around.reader(last, "Mul")
        if product is None:
            return None
        (other,) = [name for name in product.input if name != last.output[0]] or [""]
        half = around.writer(other, "Mul")
        if source == other and not multiplied:
            multiplied = True
        elif around.reads_number(product, 0.5) and not halved:
            halved = True
        elif around.reads_number(half, 0.5) and source in half.input and not (halved or multiplied):
            halved = multiplied = True
            parts.append(half)
        else:
            return None
        parts.append(product)
        last = product
    return _Found(_node("Gelu", scaled, [source], last.output), parts)


def _group_norm(norm: Any, around: _Neighbours) -> _Found | None:
    """Groups of channels as lines of a norm, then scaled and shifted where scale and shift are not plain."""
    grouped, last = around.writer(norm.input[0], "Reshape"), around.reader(norm, "Reshape")
    if grouped is None or last is None:
        return None
    parts = [grouped, norm, last]
    for kind in ("Mul", "Add"):
        following = around.reader(last, kind)
        if around.with_constants(following):
            parts.append(following)
            last = following
    return _Found(_node("GroupNormalization", norm, [grouped.input[0]], last.output), parts)


def _node(kind: str, named_after: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    return helper.make_node(kind, inputs, outputs, name=named_after.name)


#: ONNX kind of a node that no other pattern has to the pattern that it may belong to.
_PATTERNS: dict[str, Callable[[Any, _Neighbours], _Found | None]] = {
    "Sigmoid": _silu,
    "Erf": _gelu,
    "InstanceNormalization": _group_norm,
}
