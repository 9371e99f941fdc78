"""Proof that a slim network computes what the masked one computes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from hwprune.errors import VerificationError
from hwprune.graph.axes import BoolArray, ChannelAxis, kept_positions
from hwprune.graph.record import ExampleInputs, call_model, evaluation_mode

#: Largest difference allowed, as a fraction of the largest output (at least 1): rounding of float32 over the
#: depth of a network, far below what any wrongly cut channel causes.
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two networks are apart.

    Attributes:
        absolute: Largest absolute difference over all outputs and inputs.
        scale: Largest absolute output, at least 1.
    """

    absolute: float
    scale: float

    @property
    def relative(self) -> float:
        """The difference as a fraction of the scale."""
        return self.absolute / self.scale


def outputs_of(model: nn.Module, inputs: ExampleInputs) -> list[Tensor]:
    """Every tensor that the model returns, in order."""
    with torch.no_grad():
        result = call_model(model, inputs)
    return [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]


def compare(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> Difference:
    """The difference between two lists of outputs; infinite where shapes differ or a value is not finite.

    >>> compare([torch.ones(2)], [torch.tensor([1.0, 1.5])]).absolute
    0.5
    """
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return Difference(float("inf"), 1.0)
    absolute, scale = 0.0, 1.0
    for left, right in zip(expected, actual, strict=True):
        if not left.numel():
            continue
        gap = float((left.double() - right.double()).abs().max())
        absolute = float("inf") if np.isnan(gap) else max(absolute, gap)
        scale = max(scale, float(left.abs().max()))
    return Difference(absolute, scale)


def verify(
    masked: nn.Module,
    slim: nn.Module,
    batches: Sequence[ExampleInputs],
    *,
    axes: Sequence[ChannelAxis] = (),
    kept: Mapping[str, BoolArray] | None = None,
) -> Difference:
    """Compares both networks in evaluation mode and with batch statistics, as in training.

    Neither the networks nor their running statistics change. Layers that draw random numbers (dropout) are
    kept in evaluation mode.

    Args:
        masked: The full-width network with its dead channels at zero.
        slim: The network rebuilt from it.
        batches: Inputs to compare on.
        axes: The channel axes, to name the first layer that differs.
        kept: What was kept of each axis, likewise.

    Returns:
        The largest difference in evaluation mode.

    Raises:
        VerificationError: If they differ by more than :data:`TOLERANCE` in either mode.
    """
    worst = Difference(0.0, 1.0)
    for training in (False, True) if _normalises_batches(masked) else (False,):
        # One after the other: twins in double precision are twice as large as the network.
        expected = _outputs_in_mode(masked, batches, training)
        actual = _outputs_in_mode(slim, batches, training)
        for batch, left, right in zip(batches, expected, actual, strict=True):
            difference = compare(left, right)
            if difference.relative > TOLERANCE:
                twins = _copy_in_mode(masked, training), _copy_in_mode(slim, training)
                batch = _in_double(batch) if training else batch
                layer = first_difference(*twins, batch, axes, kept or {})
                raise VerificationError(
                    "the slim network does not compute what the masked one computes",
                    where=f"layer {layer}" if layer else "the outputs",
                    expected=f"a difference of at most {TOLERANCE:g} of the largest output",
                    got=f"{difference.absolute:.3g} at a largest output of {difference.scale:.3g}, "
                    + ("with batch statistics" if training else "in evaluation mode"),
                    hint="nothing was written; keep the layer at full width by naming it in keep=",
                )
            if not training and difference.relative >= worst.relative:
                worst = difference
    return worst


def _outputs_in_mode(
    model: nn.Module, batches: Sequence[ExampleInputs], batch_statistics: bool
) -> list[list[Tensor]]:
    """The outputs on every batch; the network itself and its running statistics stay as they are."""
    if batch_statistics:
        twin = _copy_in_mode(model, batch_statistics)
        return [outputs_of(twin, _in_double(batch)) for batch in batches]
    with evaluation_mode(model):
        return [outputs_of(model, batch) for batch in batches]


def _normalises_batches(model: nn.Module) -> bool:
    """Whether training changes what the network computes, dropout aside."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _in_double(batch: ExampleInputs) -> ExampleInputs:
    def widen(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    widened: ExampleInputs = tree_map(widen, batch)
    return widened


def _copy_in_mode(model: nn.Module, batch_statistics: bool) -> nn.Module:
    """A copy in evaluation mode, or with only its batch-normalising layers in training mode.

    The latter in double precision: statistics of a few values divide by differences of nearly equal numbers,
    which turns float rounding into anything.
    """
    twin = copy.deepcopy(model).eval()
    if batch_statistics:
        twin = twin.double()
        for module in twin.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
    return twin


def first_difference(
    masked: nn.Module,
    slim: nn.Module,
    batch: ExampleInputs,
    axes: Sequence[ChannelAxis],
    kept: Mapping[str, BoolArray],
) -> str | None:
    """Name of the first module, in execution order, whose output differs on the kept channels."""
    positions = {
        tensor.rpartition(".")[0]: keep
        for (tensor, dim), keep in kept_positions(axes, kept).items()
        if dim == 0
    }
    expected, actual = _module_outputs(masked, batch), _module_outputs(slim, batch)
    for name, output in expected.items():
        other = actual.get(name)
        if other is None:
            continue
        keep = positions.get(name)
        if keep is not None and output.shape != other.shape:
            dim = 1 if output.ndim >= 4 else -1
            output = output.index_select(dim, torch.from_numpy(keep))
        if output.shape == other.shape and compare([output], [other]).relative > TOLERANCE:
            return name
    return None


def _module_outputs(model: nn.Module, batch: ExampleInputs) -> dict[str, Tensor]:
    """Output tensor of every leaf module, in execution order."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if next(module.children(), None) is not None:
            continue

        def keep(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor):
                outputs[name] = output.detach().clone()

        handles.append(module.register_forward_hook(keep))
    try:
        outputs_of(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
