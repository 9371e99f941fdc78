"""What networks return, and how far two of them are apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hwprune.errors import GraphError
from hwprune.graph.record import ExampleInputs, call_model
from hwprune.graph.returned import tensors_in
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

    What it draws at random on the way is the same for every network and every call.

    Raises:
        GraphError: If it returns none: nothing could be compared.
    """
    with torch.no_grad(), torch.random.fork_rng(_gpus_of(model)):
        torch.manual_seed(0)
        result = call_model(model, inputs)
    found = tensors_in(result)
    if not found:
        raise GraphError(
            "the network returns no tensor, so that nothing can be compared",
            expected="tensors, also in lists, dictionaries, dataclasses or objects with attributes",
            got=type(result).__name__,
        )
    return found


def _gpus_of(model: nn.Module) -> list[int]:
    """The GPUs that a network is on."""
    devices = {parameter.device for parameter in model.parameters()}
    return sorted(device.index or 0 for device in devices if device.type == "cuda")


def compare(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Difference:
    """The difference between two lists of outputs; infinite where shapes differ or a value is no number.

    Values that are infinite alike do not differ.

    >>> compare([torch.ones(2), torch.tensor([1e6])], [torch.tensor([1.0, 1.5]), torch.tensor([1e6])])
    Difference(absolute=0.5, relative=0.5, scale=1.0)
    """
    if not expected or [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return Difference(float("inf"), float("inf"), 1.0)
    absolute, relative, scale = 0.0, 0.0, 0.0
    for left, right in zip(map(_real, expected), map(_real, actual), strict=True):
        if not left.numel():
            continue
        apart = torch.where((left == right) & left.isinf(), 0.0, (left - right).abs())
        gap, largest = float(apart.max()), float(left.masked_fill(left.isinf(), 0.0).abs().max())
        if gap != gap or gap == float(
            "inf"
        ):  # one of the two is no number, or infinite where the other is not
            return Difference(float("inf"), float("inf"), largest)
        part = gap / max(largest, torch.finfo(torch.float32).tiny)
        absolute = max(absolute, gap)
        if part >= relative:
            relative, scale = part, largest
    return Difference(absolute, relative, scale)


def _real(tensor: Tensor) -> Tensor:
    """The same numbers as real ones in double precision; flags as zeros and ones."""
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).double()


def wrong_by(
    masked: nn.Module, slim: nn.Module, inputs: ExampleInputs, expected: Sequence[Tensor] | None = None
) -> Difference | None:
    """How far two networks are apart that should compute the same; ``None`` where they do.

    Where single precision shows more than rounding usually is, double precision decides, in which a mistake
    that is small stays what it is and rounding disappears.

    Args:
        masked: In the mode that counts; not touched.
        slim: Likewise.
        inputs: What both are called with.
        expected: What the masked network returns for them, where that is known.
    """
    if expected is None:
        expected = outputs_of(masked, inputs)
    single = compare(expected, outputs_of(slim, inputs))
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
