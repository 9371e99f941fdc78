"""How channel labels travel through a recorded forward pass, one operator at a time.

A rule receives the :class:`Flow`, the arguments of one operator by name, and returns the labels of its
outputs. Operators without a rule keep every channel that reaches them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from hwprune.graph.axes import IntArray
from hwprune.graph.labels import FIXED, AtomStore, Dims, Labels
from hwprune.graph.record import Call, Value

#: What a tensor is made of: only parameters, only buffers, or anything else.
Source = Literal["parameter", "buffer", "activation"]


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """A tensor as rules see it.

    Attributes:
        shape: Its shape.
        dims: Labels of every dimension.
        source: ``parameter`` or ``buffer`` where it is one, or was computed from nothing else.
    """

    shape: tuple[int, ...]
    dims: Dims
    source: Source = "activation"

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def is_weight(self) -> bool:
        """Whether it does not depend on the input of the network."""
        return self.source != "activation"


#: Arguments of an operator by the names of its schema, every tensor as :class:`Labelled`.
Arguments = Mapping[str, Any]
#: Returns the labels of each output; outputs past the end of the list carry none.
Rule = Callable[["Flow", Arguments], Sequence[Dims]]

RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Registers a rule for ATen operators, named without overload: ``@rule("aten.relu")``.

    The in-place form (``relu_``) follows the same rule.
    """

    def register(function: Rule) -> Rule:
        for operator in operators:
            RULES[operator] = function
        return function

    return register


def aten(names: str) -> tuple[str, ...]:
    """Full names of ATen operators listed by their short ones.

    >>> aten("relu gelu")
    ('aten.relu', 'aten.gelu')
    """
    return tuple(f"aten.{name}" for name in names.split())


def find_rule(call: Call) -> Rule | None:
    """The rule of an operator, ``None`` where there is none."""
    namespace, name, overload = call.op.split(".")
    if overload == "out" or overload.endswith("_out"):
        return None  # writes where the labels of no argument lead
    found = RULES.get(f"{namespace}.{name}")
    if found is None and name.endswith("_"):
        found = RULES.get(f"{namespace}.{name[:-1]}")
    return found


def bind(call: Call) -> dict[str, Any]:
    """The arguments of a call by the names of its schema, defaults filled in."""
    namespace, name, overload = call.op.split(".")
    schema = getattr(getattr(getattr(torch.ops, namespace), name), overload)._schema
    bound: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(call.args):
            bound[argument.name] = call.args[position]
        elif argument.name in call.kwargs:
            bound[argument.name] = call.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


class Flow:
    """The labels of every value so far, and the verbs that rules use.

    Args:
        parameters: Names of the network's parameters; other named tensors are buffers.
    """

    def __init__(self, parameters: Iterable[str]) -> None:
        self.store = AtomStore()
        self._parameters = frozenset(parameters)
        self._tensors: dict[str, Labelled] = {}
        self._values: dict[int, Labelled] = {}
        self._buffer_atoms = np.zeros(0, dtype=np.int64)
        self._place = ""

    # What the driver calls.

    def enter(self, module: str) -> None:
        """Notes the module that the next operators run in, for reasons."""
        self._place = module

    def labelled(self, value: Value) -> Labelled:
        """The labels of a value; fresh atoms where it is a parameter or buffer not met before."""
        known = self._values.get(value.index)
        if known is None:
            if value.name is None:
                known = Labelled(value.shape, (None,) * len(value.shape))
            else:
                known = self._tensor(value.name, value.shape)
            self._values[value.index] = known
        return known

    def give(self, value: Value, dims: Dims, source: Source) -> None:
        """Sets the labels of an operator's output."""
        self._values[value.index] = Labelled(value.shape, dims, source)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Labelled:
        if name not in self._tensors:
            # A dimension of size 1 broadcasts or has a single channel: nothing to cut.
            dims = tuple(
                self.store.create(name, dim, size) if size > 1 else None for dim, size in enumerate(shape)
            )
            source: Source = "parameter" if name in self._parameters else "buffer"
            self._tensors[name] = Labelled(shape, dims, source)
            if source == "buffer":
                atoms = [labels for labels in dims if labels is not None]
                self._buffer_atoms = np.concatenate([self._buffer_atoms, *atoms])
        return self._tensors[name]

    # What rules call.

    def pin(self, labels: Labels, why: str) -> None:
        """Keeps the labelled channels, because of ``why`` in the present module."""
        if labels is not None:
            self.store.pin(labels, f"{why} (in {self._place})" if self._place else why)

    def pin_all(self, dims: Iterable[Labels], why: str) -> None:
        """Keeps the channels along each of ``dims``."""
        for labels in dims:
            self.pin(labels, why)

    def produce(self, tensor: Labelled, *labels: Labels) -> None:
        """Notes that a parameter brings the channels along ``labels`` into being.

        Nothing can make a buffer zero, so channels that come from one are kept, also where a parameter is
        combined with it; activations come from parameters met earlier.
        """
        fixed = "a fixed buffer feeds the channel"
        if tensor.source == "buffer":
            self.pin_all(labels, fixed)
        elif tensor.source == "parameter":
            for each in labels:
                if each is not None:
                    of_buffer = np.isin(each, self._buffer_atoms)
                    self.pin(each[of_buffer], fixed)
                    self.store.mark_producers(each[~of_buffer])

    def meet(self, left: Labels, right: Labels, why: str) -> Labels:
        """Makes two dimensions of equal size one.

        Where one side is fixed the channels of the other are kept, because of ``why``.

        Returns:
            The common labels.
        """
        if left is None or right is None:
            self.pin(right if left is None else left, why)
            return None
        both = (left >= 0) & (right >= 0)
        self.store.unify(left[both], right[both])
        self.pin(np.where(both, FIXED, np.maximum(left, right)), why)
        common = np.where(both, left, FIXED)
        return common if both.any() else None

    def tie(self, rows: IntArray, why: str) -> Labels:
        """Makes all rows of a matrix of atoms, shape ``(rows, channels)``, one.

        Returns:
            The common labels, shape ``(channels,)``.
        """
        common: Labels = rows[0]
        for row in rows[1:]:
            common = self.meet(common, row, why)
        return common
