"""Proof that a slim network computes what the masked one computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hwprune.errors import GraphError, VerificationError
from hwprune.graph.axes import BoolArray, ChannelAxis, IntArray, kept_positions
from hwprune.graph.record import ExampleInputs, evaluation_mode, record
from hwprune.graph.twin import copy_of
from hwprune.surgery.outputs import (
    UNDECIDED,
    Difference,
    compare,
    difference_in_double,
    in_double,
    outputs_of,
)

#: Largest difference allowed, as a fraction of the largest value of an output: rounding of float32 over the
#: depth of a network, far below what any wrongly cut channel causes.
TOLERANCE = 1e-5


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
    kept in evaluation mode. Every output is judged by its own largest value; where single precision says
    more than :data:`TOLERANCE`, double precision decides, if the network runs in it. Statistics of a batch of
    one are compared on two images; a network that takes neither is compared in evaluation mode alone.

    Args:
        masked: The full-width network with its dead channels at zero.
        slim: The network rebuilt from it.
        batches: Inputs to compare on.
        axes: The channel axes, to name the first layer that differs.
        kept: What was kept of each axis, likewise.

    Returns:
        The largest difference in evaluation mode, in single precision.

    Raises:
        VerificationError: If they differ by more than :data:`TOLERANCE` in either mode, or the slim one
            raises.
    """
    worst = Difference(0.0, 0.0, 0.0)
    for batch in batches:
        with evaluation_mode(masked), evaluation_mode(slim):
            expected = outputs_of(masked, batch)
            difference = compare(expected, _slim_outputs(slim, batch, "in evaluation mode"))
            judged, allowed = difference, TOLERANCE
            if difference.relative > TOLERANCE:
                exact = difference_in_double(masked, slim, batch)
                judged, allowed = (exact, TOLERANCE) if exact is not None else (difference, UNDECIDED)
            if judged.relative > allowed:
                layer = first_difference(masked, slim, batch, axes, kept or {})
                raise _differ(judged, allowed, layer, "in evaluation mode")
        if difference.relative >= worst.relative:
            worst = difference
    for batch in batches:
        statistics = _with_batch_statistics(masked, slim, batch)
        if statistics is not None and statistics.wrong:
            twins = [_in_training(model, double=statistics.double) for model in (masked, slim)]
            layer = first_difference(twins[0], twins[1], statistics.inputs, axes, kept or {})
            raise _differ(statistics.difference, statistics.allowed, layer, "with batch statistics")
    return worst


def _differ(difference: Difference, allowed: float, layer: str | None, mode: str) -> VerificationError:
    return VerificationError(
        "the slim network does not compute what the masked one computes",
        where=f"layer {layer}" if layer else "the outputs",
        expected=f"a difference of at most {allowed:g} of the largest output",
        got=f"{difference.absolute:.3g} at a largest output of {difference.scale:.3g}, {mode}",
        hint="nothing was written; keep the layer at full width by naming it in keep=",
    )


def _slim_outputs(slim: nn.Module, batch: ExampleInputs, mode: str) -> list[Tensor]:
    """What the slim network returns for inputs that the masked one takes."""
    try:
        return outputs_of(slim, batch)
    except Exception as error:  # a narrowed forward pass may raise anything where a width is written out
        raise VerificationError(
            "the slim network does not run on inputs that the masked one takes",
            where=_where_it_raises(slim, batch),
            expected="a forward pass without error",
            got=f"{type(error).__name__}: {error}, {mode}",
            hint="nothing was written; keep the layer before it at full width by naming it in keep=",
        ) from error


def _where_it_raises(model: nn.Module, batch: ExampleInputs) -> str:
    """The module that raises, if it does so again in evaluation mode."""
    try:
        record(model, batch)
    except GraphError as error:
        return str(error.where)
    return type(model).__name__


@dataclass(frozen=True, slots=True)
class _Statistics:
    """A comparison with the statistics of a batch.

    Attributes:
        difference: How far the networks are apart.
        allowed: The part of the largest output that they may be apart.
        inputs: What both were called with.
        double: Whether in double precision.
    """

    difference: Difference
    allowed: float
    inputs: ExampleInputs
    double: bool

    @property
    def wrong(self) -> bool:
        """Whether they are further apart than they may be."""
        return self.difference.relative > self.allowed


def wrong_with_statistics(masked: nn.Module, slim: nn.Module, batch: ExampleInputs) -> Difference | None:
    """How far networks are apart with the statistics of a batch; ``None`` where they agree or have none."""
    statistics = _with_batch_statistics(masked, slim, batch)
    return statistics.difference if statistics is not None and statistics.wrong else None


def _with_batch_statistics(masked: nn.Module, slim: nn.Module, batch: ExampleInputs) -> _Statistics | None:
    """Compares in the first way in which the masked network runs; ``None`` where there is none."""
    if not _normalises_batches(masked):
        return None
    for inputs, double, allowed in (
        # Statistics of a few values divide by differences of nearly equal numbers, which turns float rounding
        # into anything: double precision, wherever the network takes it.
        (in_double(batch), True, TOLERANCE),
        (in_double(two_of(batch)), True, TOLERANCE),
        (batch, False, UNDECIDED),
        (two_of(batch), False, UNDECIDED),
    ):
        try:
            expected = outputs_of(_in_training(masked, double=double), inputs)
        except Exception:  # the user's forward pass, which may raise anything on other data
            continue
        # One after the other: twins in double precision are twice as large as the network.
        actual = _slim_outputs(_in_training(slim, double=double), inputs, "with batch statistics")
        return _Statistics(compare(expected, actual), allowed, inputs, double)
    return None


def two_of(inputs: ExampleInputs) -> ExampleInputs:
    """The same inputs with every tensor of a single image twice, once slightly changed."""

    def twice(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim or leaf.shape[0] != 1:
            return leaf
        return torch.cat([leaf, leaf * 0.75 + 0.25 if leaf.is_floating_point() else leaf])

    doubled: ExampleInputs = tree_map(twice, inputs)
    return doubled


def _normalises_batches(model: nn.Module) -> bool:
    """Whether training changes what the network computes, dropout aside."""
    return any(map(_has_statistics, model.modules()))


def _has_statistics(module: nn.Module) -> bool:
    """Whether a layer normalises by what it is given in training, and by what it kept in evaluation."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    return isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats


def _in_training(model: nn.Module, *, double: bool) -> nn.Module:
    """A copy with only the layers in training mode that normalise by statistics."""
    twin = copy_of(model).eval()
    if double:
        twin = twin.double()
    for module in twin.modules():
        if _has_statistics(module):
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
    positions = _kept_outputs(axes, kept)
    expected, actual = _module_outputs(masked, batch), _module_outputs(slim, batch)
    for name, output in expected.items():
        other = actual.get(name)
        if other is None:
            continue
        keep = positions.get(name)
        if keep is not None and output.shape != other.shape:
            output = _narrowed(output, other, torch.from_numpy(keep).to(output.device))
        if output.shape == other.shape and compare([output], [other]).relative > TOLERANCE:
            return name
    return None


def _kept_outputs(axes: Sequence[ChannelAxis], kept: Mapping[str, BoolArray]) -> dict[str, IntArray]:
    """Module to the positions of its output channels that stay.

    They run along the dimension in which its parameters make channels (the second of an embedding or a
    transposed convolution), and along the first where it has nothing but statistics of them.
    """
    producing = {(part.tensor, part.dim) for axis in axes for part in axis.producers}
    found: dict[str, IntArray] = {}
    for (tensor, dim), keep in kept_positions(axes, kept).items():
        module = tensor.rpartition(".")[0]
        if (tensor, dim) in producing:
            found[module] = keep
        elif dim == 0:
            found.setdefault(module, keep)
    return found


def _narrowed(output: Tensor, other: Tensor, keep: Tensor) -> Tensor:
    """An output on the channels that stay, along the only dimension that is narrower; else as it is."""
    narrower = [dim for dim, size in enumerate(output.shape) if other.shape[dim : dim + 1] != (size,)]
    if output.ndim != other.ndim or len(narrower) != 1:
        return output
    (dim,) = narrower
    if output.shape[dim] > int(keep.max()) and other.shape[dim] == len(keep):
        return output.index_select(dim, keep)
    return output


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
