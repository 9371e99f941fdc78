"""Tries every cut before training: what cannot be cut exactly is pinned, with the reason.

Finding the coupling is one thing, knowing that it is right another. Each axis is cut alone on a copy of
the network with random parameters (trained or freshly initialised ones hide mistakes behind zeros and
ones), masked and slim outputs are compared, and the operators of the slim network are recorded: they say
how every operator's channels follow the width of the axis. Equal outputs prove nothing where they would be
equal whatever the channels held; so it is seen first that they are not. In the end all axes are cut together,
by half and to equal widths, because a network may ask how wide it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hwprune.errors import GraphError
from hwprune.graph.axes import ChannelAxis
from hwprune.graph.record import ExampleInputs, record
from hwprune.graph.trace import trace_operators
from hwprune.graph.twin import copy_of
from hwprune.operators import Operator
from hwprune.surgery.fold import fold_constants
from hwprune.surgery.outputs import compare, outputs_of, wrong_by
from hwprune.surgery.random_inputs import random_inputs
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.verify import two_of, wrong_with_statistics

#: Random copies that are made where the outputs of the first do not show an axis.
COPIES = 4


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
    copies = _Copies(model, example_inputs, seed)
    dense = _finite(model, example_inputs, generator)
    shown = _Shown(dense, example_inputs)
    in_training = _more_in_training(dense, example_inputs)
    in_loss = np.zeros((len(operators), len(axes)), dtype=np.int64)
    out_loss = np.zeros_like(in_loss)
    proven = []
    folded: dict[str, tuple[str, ...]] = {}
    for index, axis in enumerate(axes):
        removed = _half(axis.width, aligns[axis.name])
        if axis.pinned is None and removed > 0:
            trial = _Trial(dense, (axis,), example_inputs, fold=fold, in_training=in_training)
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


def _finite(model: nn.Module, example_inputs: ExampleInputs, generator: torch.Generator) -> nn.Module:
    """A randomised copy in evaluation mode that computes numbers: near the network's own where it must be."""
    dense = randomised(model, generator).eval()
    try:
        if not any(bool(output.isnan().any()) for output in outputs_of(dense, example_inputs)):
            return dense
    except Exception:  # the user's forward pass; the trials say of every axis what it raises
        return dense
    return randomised(model, generator, near=True).eval()


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


class _Shown:
    """Whether the outputs of a network depend on the channels of an axis, on real or on random inputs.

    Args:
        dense: The randomised network.
        example_inputs: What it is called with.
    """

    def __init__(self, dense: nn.Module, example_inputs: ExampleInputs) -> None:
        self._dense, self._inputs = dense, (example_inputs, random_inputs(example_inputs))
        self._whole = [self._numbers(inputs) for inputs in self._inputs]

    def _numbers(self, inputs: ExampleInputs) -> list[Tensor] | None:
        """Outputs that vary with what they are computed from: classes and flags do so only by leaps."""
        try:
            outputs = outputs_of(self._dense, inputs)
        except Exception:  # the user's forward pass, which may refuse random inputs
            return None
        return [each for each in outputs if _is_number(each)]

    def depends_on(self, axis: ChannelAxis, masked: Sequence[Tensor] = ()) -> bool:
        """Whether it makes a difference that the axis has channels that are not zero.

        Args:
            axis: The axis.
            masked: What the network returned with some of them at zero.
        """
        whole, some = self._whole[0], [each for each in masked if _is_number(each)]
        if whole and some and compare(whole, some).relative > 0:
            return True  # without another forward pass
        with zeroed(self._dense, axis, np.zeros(axis.width, dtype=bool)):
            for inputs, whole in zip(self._inputs, self._whole, strict=True):
                without = self._numbers(inputs) if whole else None
                if whole and without is not None and compare(whole, without).relative > 0:
                    return True
        return False


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


class _Copies:
    """Further random copies of a network, for axes that the first does not show: behind a dead ReLU, say.

    Args:
        model: The network.
        example_inputs: What it is called with.
        seed: Of the first copy.
    """

    def __init__(self, model: nn.Module, example_inputs: ExampleInputs, seed: int) -> None:
        self._model, self._inputs = model, example_inputs
        self._generators = [torch.Generator().manual_seed(seed + 1 + copy) for copy in range(COPIES)]

    @cached_property
    def _made(self) -> list[tuple[nn.Module, _Shown]]:
        made = [_finite(self._model, self._inputs, generator) for generator in self._generators]
        return [(dense, _Shown(dense, self._inputs)) for dense in made]

    def try_elsewhere(self, axis: ChannelAxis, removed: int, *, fold: bool) -> str | None:
        """Cuts an axis on the first copy that shows it; the reason why it must stay, if there is one."""
        for (dense, shown), generator in zip(self._made, self._generators, strict=True):
            if shown.depends_on(axis):
                trial = _Trial(dense, (axis,), self._inputs, fold=fold)
                return trial.cut({axis.name: removed}, generator)[0]
        return "the outputs do not show whether its channels are there"


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
        for removed_of in (self._half_of, self._to_equal):
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
        return _Trial(self._dense, axes, self._inputs, fold=self._fold).cut(removed, generator)[0]

    def _half_of(self, axes: Sequence[ChannelAxis]) -> dict[str, int]:
        return {axis.name: _half(axis.width, self._aligns[axis.name]) for axis in axes}

    def _to_equal(self, axes: Sequence[ChannelAxis]) -> dict[str, int]:
        """What leaves every axis as wide as half of the narrowest, as nearly as its steps allow."""
        least = min((axis.width // 2 for axis in axes), default=0)
        aligns = self._aligns
        left = {axis.name: max(least // aligns[axis.name], 1) * aligns[axis.name] for axis in axes}
        return {axis.name: max(axis.width - left[axis.name], 0) for axis in axes}


def randomised(model: nn.Module, generator: torch.Generator, *, near: bool = False) -> nn.Module:
    """A copy with random floating-point parameters and buffers, scaled so that activations stay finite.

    Args:
        model: The network; not touched.
        generator: Source of the numbers.
        near: Draw what is not zero from around what it is, with its sign: of what must be positive, say.
    """
    twin = copy_of(model)
    with torch.no_grad():
        for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
            if tensor.is_floating_point():
                drawn = _random_like(tensor, name, generator)
                tensor.copy_(_around(tensor, drawn, generator) if near else drawn)
    return twin


def _random_like(tensor: Tensor, name: str, generator: torch.Generator) -> Tensor:
    drawn = torch.empty_like(tensor).copy_(torch.randn(tensor.shape, generator=generator))
    if name.endswith("running_var"):
        return drawn.square().add(0.5)
    if tensor.ndim >= 2:
        return drawn.mul(math.sqrt(2.0 / max(tensor[0].numel(), 1)))
    return drawn.mul(0.3).add(1.0 if name.endswith("weight") else 0.0)


def _around(tensor: Tensor, drawn: Tensor, generator: torch.Generator) -> Tensor:
    """Values within half of those of a tensor; others where it is zero."""
    factors = torch.empty_like(tensor).copy_(1 + torch.rand(tensor.shape, generator=generator) - 0.5)
    return torch.where(tensor == 0, drawn, tensor * factors)


class _Trial:
    """Axes, cut together; most of the time a single one.

    Args:
        dense: The randomised network.
        axes: The axes.
        example_inputs: What it is called with.
        fold: See :func:`prove`.
        in_training: What it is called with in training, where further layers run then.

    Attributes:
        folded: The layers that took up constants, where that made the cut exact.
        masked: What the network returned with the channels at zero.
    """

    def __init__(
        self,
        dense: nn.Module,
        axes: Sequence[ChannelAxis],
        example_inputs: ExampleInputs,
        *,
        fold: bool,
        in_training: ExampleInputs | None = None,
    ) -> None:
        self._dense, self._axes, self._inputs, self._fold = dense, axes, example_inputs, fold
        self._in_training = in_training
        self.masked: Sequence[Tensor] = ()
        self.folded: tuple[str, ...] = ()

    def cut(
        self, removed: Mapping[str, int], generator: torch.Generator
    ) -> tuple[str | None, tuple[Operator, ...]]:
        """Cuts random channels; the reason why that is wrong, if it is, and the slim operators.

        Args:
            removed: How many of every axis.
            generator: Draws which.
        """
        kept = {}
        with ExitStack() as stack:
            for axis in self._axes:
                mask = np.ones(axis.width, dtype=bool)
                mask[torch.randperm(axis.width, generator=generator)[: removed[axis.name]].numpy()] = False
                kept[axis.name] = mask
                stack.enter_context(zeroed(self._dense, axis, mask))
            try:
                slim = rebuild(self._dense, self._axes, kept)
                operators = trace_operators(slim, self._inputs)
                self.masked = outputs_of(self._dense, self._inputs)
                difference = wrong_by(self._dense, slim, self._inputs, self.masked)
                if self._fold and difference is not None:
                    self.folded = fold_constants(self._dense, slim, self._axes, kept, self._inputs)
                    difference = wrong_by(self._dense, slim, self._inputs)
                    if self.folded and difference is None:
                        # What is constant in evaluation need not be with the statistics of a batch.
                        difference = wrong_with_statistics(self._dense, slim, self._inputs)
            except GraphError as error:
                return f"cannot be narrowed: {error.got or error.what}", ()
            except Exception as error:  # the user's forward pass, which may not take random parameters
                return f"cannot be tried on random parameters: {type(error).__name__}: {error}", ()
        if difference is not None and len(self._axes) > 1:
            return f"the outputs differ by {difference.absolute:.2g}: the network asks how wide it is", ()
        if difference is not None:
            return (
                f"a zeroed channel still acts on the network (outputs differ by {difference.absolute:.2g}): "
                "an activation with f(0) != 0, or a layer that mixes the channels",
                (),
            )
        if self._in_training is not None:
            try:
                outputs_of(slim.train(), self._in_training)
            except Exception as error:  # a layer that is not narrower raises whatever its operator raises
                told = str(error).partition("\n")[0]
                return f"a layer that runs only in training reads its channels ({told})", ()
        return None, operators


def _half(width: int, align: int) -> int:
    """How many channels a trial cuts: about half of them, as what is small in one adds up over many."""
    return min(align * max(width // align // 2, 1), width - 1)


class zeroed:  # noqa: N801  (used as a context manager, like torch.no_grad)
    """Within the context the producers of the masked-out channels are zero; afterwards as before.

    Args:
        model: The network; changed in place and restored.
        axis: The axis to mask.
        mask: Shape ``(width,)``, ``False`` for channels to zero.
    """

    def __init__(self, model: nn.Module, axis: ChannelAxis, mask: npt.NDArray[np.bool_]) -> None:
        self._tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        self._axis, self._mask = axis, mask
        self._saved: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        for part in self._axis.producers:
            tensor = self._tensors[part.tensor].detach()
            self._saved.setdefault(part.tensor, tensor.clone())
            dead = np.flatnonzero((part.channels >= 0) & ~self._mask[np.maximum(part.channels, 0)])
            tensor.index_fill_(part.dim, torch.from_numpy(dead).to(tensor.device), 0.0)

    def __exit__(self, *_exception: object) -> None:
        for name, values in self._saved.items():
            self._tensors[name].detach().copy_(values)


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
