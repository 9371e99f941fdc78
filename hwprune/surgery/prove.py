"""Tries every cut before training: what cannot be cut exactly is pinned, with the reason.

Finding the coupling is one thing, knowing that it is right another. Each axis is cut alone on a copy of
the network with random parameters (trained or freshly initialised ones hide mistakes behind zeros and
ones), masked and slim outputs are compared, and the operators of the slim network are recorded: they say
how every operator's channels follow the width of the axis. Equal outputs prove nothing where they would be
equal whatever the channels held; so it is seen first that they are not. In the end all axes are cut together,
by half and to equal widths, because a network may ask how wide it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hwprune.graph.axes import ChannelAxis
from hwprune.graph.record import ExampleInputs, record
from hwprune.graph.trace import trace_operators
from hwprune.graph.twin import copy_of
from hwprune.operators import Operator
from hwprune.surgery.outputs import outputs_of
from hwprune.surgery.random_copies import finite_copy
from hwprune.surgery.shown import Copies, Shown
from hwprune.surgery.trial import Trial, half_of
from hwprune.surgery.verify import two_of


@dataclass(frozen=True, slots=True, eq=False)
class ProvenAxes:
    """The axes of a network and how its operators follow them.

    Attributes:
        axes: All axes; those that failed their trial are pinned.
        operators: The fused operators of the dense network.
        in_loss: Shape ``(operators, axes)``: input channels an operator loses per channel of the axis.
        out_loss: Shape ``(operators, axes)``: likewise for output channels.
        folded: Axis name to the layers whose biases take up the constants of its dead channels, for axes
            whose dead channels are not zero.
    """

    axes: tuple[ChannelAxis, ...]
    operators: tuple[Operator, ...]
    in_loss: npt.NDArray[np.int64]
    out_loss: npt.NDArray[np.int64]
    folded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def prove(
    model: nn.Module,
    axes: Sequence[ChannelAxis],
    example_inputs: ExampleInputs,
    aligns: Mapping[str, int],
    *,
    fold: bool = False,
    seed: int = 0,
) -> ProvenAxes:
    """Cuts every axis once on a randomised copy and pins those that do not come out equal.

    Args:
        model: The network; not touched.
        axes: Its axes, as found by the coupling.
        example_inputs: What it is called with.
        aligns: Axis name to the number of channels that leave together.
        fold: Whether axes may shrink whose dead channels are constants that a bias takes up; whoever rebuilds
            the network must then call :func:`~hwprune.surgery.fold.fold_constants`.
        seed: Seed of the random parameters.

    Returns:
        The axes, pinned where needed, and the widths of every operator as a function of theirs.
    """
    generator = torch.Generator().manual_seed(seed)
    operators = trace_operators(model, example_inputs)
    copies = Copies(model, example_inputs, seed)
    dense = finite_copy(model, example_inputs, generator)
    shown = Shown(dense, example_inputs)
    in_training = _more_in_training(dense, example_inputs)
    in_loss = np.zeros((len(operators), len(axes)), dtype=np.int64)
    out_loss = np.zeros_like(in_loss)
    proven = []
    folded: dict[str, tuple[str, ...]] = {}
    for index, axis in enumerate(axes):
        removed = half_of(axis.width, aligns[axis.name])
        if axis.pinned is None and removed > 0:
            trial = Trial(dense, (axis,), example_inputs, fold=fold, in_training=in_training)
            reason, slim_operators = trial.cut({axis.name: removed}, generator)
            if reason is None and not shown.depends_on(axis, trial.masked):
                reason = copies.try_elsewhere(axis, removed, fold=fold)
            if reason is None and [op.kind for op in slim_operators] != [op.kind for op in operators]:
                reason = "the narrower network runs other operators"
            if reason is None:
                reason = _widths(operators, slim_operators, removed, in_loss[:, index], out_loss[:, index])
            if reason is None and trial.folded:
                folded[axis.name] = trial.folded
            axis = replace(axis, pinned=reason)
        proven.append(axis)
    together = _Together(dense, example_inputs, aligns, fold=fold)
    axes = together.pinned(proven, generator)
    free = {axis.name for axis in axes if axis.pinned is None}
    folded = {name: layers for name, layers in folded.items() if name in free}
    return ProvenAxes(axes, operators, in_loss, out_loss, folded)


def _more_in_training(dense: nn.Module, example_inputs: ExampleInputs) -> ExampleInputs | None:
    """Inputs that the network runs with in training, where more of its layers do so than in evaluation."""
    for inputs in (example_inputs, two_of(example_inputs)):
        twin = copy_of(dense).train()
        ran: list[str] = []
        for name, module in twin.named_modules():
            module.register_forward_pre_hook(partial(_note, ran, name))
        try:
            outputs_of(twin, inputs)
        except Exception:  # the user's forward pass, which may want labels or more images in training
            continue
        return inputs if set(ran) - record(dense, example_inputs).modules else None
    return None


def _note(names: list[str], name: str, *_arguments: object) -> None:
    names.append(name)


class _Together:
    """All axes, cut at the same time.

    Args:
        dense: The randomised network.
        example_inputs: What it is called with.
        aligns: Axis name to the number of channels that leave together.
        fold: See :func:`prove`.
    """

    def __init__(
        self, dense: nn.Module, example_inputs: ExampleInputs, aligns: Mapping[str, int], *, fold: bool
    ) -> None:
        self._dense, self._inputs, self._aligns, self._fold = dense, example_inputs, aligns, fold

    def pinned(self, axes: Sequence[ChannelAxis], generator: torch.Generator) -> tuple[ChannelAxis, ...]:
        """The axes; pinned are also those that cannot be cut together with the ones before them."""
        for removed_of in (self._to_half, self._to_equal):
            free = [axis for axis in axes if axis.pinned is None and axis.width > self._aligns[axis.name]]
            removed = removed_of(free)
            free = [axis for axis in free if removed[axis.name]]
            if len(free) < 2 or self._fails(free, removed, generator) is None:
                continue
            reasons: dict[str, str] = {}
            good: list[ChannelAxis] = []
            for axis in free:
                reason = self._fails([*good, axis], removed, generator)
                if reason is None:
                    good.append(axis)
                else:
                    reasons[axis.name] = f"cut together with other axes {reason}"
            axes = [replace(axis, pinned=reasons.get(axis.name, axis.pinned)) for axis in axes]
        return tuple(axes)

    def _fails(
        self, axes: Sequence[ChannelAxis], removed: Mapping[str, int], generator: torch.Generator
    ) -> str | None:
        return Trial(self._dense, axes, self._inputs, fold=self._fold).cut(removed, generator)[0]

    def _to_half(self, axes: Sequence[ChannelAxis]) -> dict[str, int]:
        return {axis.name: half_of(axis.width, self._aligns[axis.name]) for axis in axes}

    def _to_equal(self, axes: Sequence[ChannelAxis]) -> dict[str, int]:
        """What leaves every axis as wide as half of the narrowest, as nearly as its steps allow."""
        least = min((axis.width // 2 for axis in axes), default=0)
        aligns = self._aligns
        left = {axis.name: max(least // aligns[axis.name], 1) * aligns[axis.name] for axis in axes}
        return {axis.name: max(axis.width - left[axis.name], 0) for axis in axes}


def _widths(
    dense: Sequence[Operator],
    slim: Sequence[Operator],
    removed: int,
    in_loss: npt.NDArray[np.int64],
    out_loss: npt.NDArray[np.int64],
) -> str | None:
    """Fills the losses per channel; a reason where an operator does not follow the width linearly."""
    for row, (before, after) in enumerate(zip(dense, slim, strict=True)):
        lost_in = before.in_channels - after.in_channels
        lost_out = before.out_channels - after.out_channels
        if lost_in % removed or lost_out % removed:
            return f"the width of {before.name or before.kind} does not follow it linearly"
        in_loss[row], out_loss[row] = lost_in // removed, lost_out // removed
    return None
