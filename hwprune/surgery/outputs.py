"""What networks return, and how far two of them are apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from hwprune.errors import GraphError
from hwprune.graph.record import ExampleInputs, call_model
from hwprune.graph.twin import copy_of

#: How far single precision takes two networks apart that are the same, as a fraction of the largest value.
ROUNDING = 3e-6
#: What is allowed where single precision alone decides, which does not tell rounding from a small mistake.
UNDECIDED = 1e-4


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """How far the outputs of two networks are apart.

    Attributes:
        absolute: Largest absolute difference over all outputs.
        relative: Largest difference of an output as a fraction of that output's own largest value: a small
            output beside large ones counts as much as they do.
        scale: Largest absolute value of the output that is furthest apart in that sense.
    """

    absolute: float
    relative: float
    scale: float


def outputs_of(model: nn.Module, inputs: ExampleInputs) -> list[Tensor]:
    """Every tensor that the model returns, in order, whatever they are returned in.

    Raises:
        GraphError: If it returns none: nothing could be compared.
    """
    with torch.no_grad():
        result = call_model(model, inputs)
    found = list(_tensors_in(result, set()))
    if not found:
        raise GraphError(
            "the network returns no tensor, so that nothing can be compared",
            expected="tensors, also in lists, dictionaries, dataclasses or objects with attributes",
            got=type(result).__name__,
        )
    return found


def _tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Tensors in nested containers; in those that PyTorch does not know as such, among their attributes."""
    for leaf in tree_flatten(value)[0]:
        if isinstance(leaf, Tensor):
            yield leaf
        elif id(leaf) not in seen and not isinstance(leaf, nn.Module | type):
            seen.add(id(leaf))
            names = (
                [field.name for field in dataclasses.fields(leaf)] if dataclasses.is_dataclass(leaf) else []
            )
            names += [name for name in getattr(leaf, "__dict__", {}) if name not in names]
            for name in names:
                yield from _tensors_in(getattr(leaf, name, None), seen)


def compare(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Difference:
    """The difference between two lists of outputs; infinite where shapes differ or a value is not finite.

    >>> compare([torch.ones(2), torch.tensor([1e6])], [torch.tensor([1.0, 1.5]), torch.tensor([1e6])])
    Difference(absolute=0.5, relative=0.5, scale=1.0)
    """
    if not expected or [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return Difference(float("inf"), float("inf"), 1.0)
    absolute, relative, scale = 0.0, 0.0, 0.0
    for left, right in zip(map(_real, expected), map(_real, actual), strict=True):
        if not left.numel():
            continue
        gap, largest = float((left - right).abs().max()), float(left.abs().max())
        if gap != gap:  # neither number: one of the two is not finite
            return Difference(float("inf"), float("inf"), largest)
        part = gap / max(largest, torch.finfo(torch.float32).tiny)
        absolute = max(absolute, gap)
        if part >= relative:
            relative, scale = part, largest
    return Difference(absolute, relative, scale)


def _real(tensor: Tensor) -> Tensor:
    """The same numbers as real ones in double precision; flags as zeros and ones."""
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).double()


def wrong_by(masked: nn.Module, slim: nn.Module, inputs: ExampleInputs) -> Difference | None:
    """How far two networks are apart that should compute the same; ``None`` where they do.

    Where single precision shows more than rounding usually is, double precision decides, in which a mistake
    that is small stays what it is and rounding disappears.

    Args:
        masked: In the mode that counts; not touched.
        slim: Likewise.
        inputs: What both are called with.
    """
    single = compare(outputs_of(masked, inputs), outputs_of(slim, inputs))
    if single.relative <= ROUNDING:
        return None
    exact = difference_in_double(masked, slim, inputs)
    if exact is None:
        return single if single.relative > UNDECIDED else None
    return exact if exact.relative > ROUNDING else None


def difference_in_double(masked: nn.Module, slim: nn.Module, inputs: ExampleInputs) -> Difference | None:
    """The difference in double precision; ``None`` where the first network does not run in it."""
    inputs = in_double(inputs)
    try:
        expected = outputs_of(copy_of(masked).double(), inputs)
    except Exception:  # the user's forward pass, which may ask for single precision by name
        return None
    return compare(expected, outputs_of(copy_of(slim).double(), inputs))


def rounding_of(model: nn.Module, inputs: ExampleInputs) -> float:
    """How far single precision takes the outputs of a network from those in double, relatively; 0 if unknown.

    Args:
        model: In the mode that counts, in single precision; not touched.
        inputs: What it is called with.
    """
    try:
        exact = outputs_of(copy_of(model).double(), in_double(inputs))
    except Exception:  # the user's forward pass, which may ask for single precision by name
        return 0.0
    return compare(exact, outputs_of(model, inputs)).relative


def in_double(inputs: ExampleInputs) -> ExampleInputs:
    """The same inputs with floating-point numbers in double precision."""

    def widen(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    widened: ExampleInputs = tree_map(widen, inputs)
    return widened
