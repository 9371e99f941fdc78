"""Tries every cut before training: what cannot be cut exactly is pinned, with the reason.

Finding the coupling is one thing, knowing that it is right another. Each axis is cut alone on a copy of
the network with random parameters (trained or freshly initialised ones hide mistakes behind zeros and
ones), masked and slim outputs are compared, and the operators of the slim network are recorded: they say
how every operator's channels follow the width of the axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hwprune.errors import GraphError
from hwprune.graph.axes import ChannelAxis
from hwprune.graph.record import ExampleInputs
from hwprune.graph.trace import trace_operators
from hwprune.graph.twin import copy_of
from hwprune.operators import Operator
from hwprune.surgery.fold import fold_constants
from hwprune.surgery.outputs import wrong_by
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.verify import wrong_with_statistics


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
    dense = randomised(model, generator).eval()
    in_loss = np.zeros((len(operators), len(axes)), dtype=np.int64)
    out_loss = np.zeros_like(in_loss)
    proven = []
    folded: dict[str, tuple[str, ...]] = {}
    for index, axis in enumerate(axes):
        removed = _half(axis.width, aligns[axis.name])
        if axis.pinned is None and removed > 0:
            trial = _Trial(dense, axis, example_inputs, fold=fold)
            reason, slim_operators = trial.cut(removed, generator)
            if reason is None and [op.kind for op in slim_operators] != [op.kind for op in operators]:
                reason = "the narrower network runs other operators"
            if reason is None:
                reason = _widths(operators, slim_operators, removed, in_loss[:, index], out_loss[:, index])
            if reason is None and trial.folded:
                folded[axis.name] = trial.folded
            axis = replace(axis, pinned=reason)
        proven.append(axis)
    return ProvenAxes(tuple(proven), operators, in_loss, out_loss, folded)


def randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with random floating-point parameters and buffers, scaled so that activations stay finite.

    Args:
        model: The network; not touched.
        generator: Source of the numbers.
    """
    twin = copy_of(model)
    with torch.no_grad():
        for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(_random_like(tensor, name, generator))
    return twin


def _random_like(tensor: Tensor, name: str, generator: torch.Generator) -> Tensor:
    drawn = torch.empty_like(tensor).copy_(torch.randn(tensor.shape, generator=generator))
    if name.endswith("running_var"):
        return drawn.square().add(0.5)
    if tensor.ndim >= 2:
        return drawn.mul(math.sqrt(2.0 / max(tensor[0].numel(), 1)))
    return drawn.mul(0.3).add(1.0 if name.endswith("weight") else 0.0)


class _Trial:
    """One axis, cut alone.

    Attributes:
        folded: The layers that took up constants, where that made the cut exact.
    """

    def __init__(
        self, dense: nn.Module, axis: ChannelAxis, example_inputs: ExampleInputs, *, fold: bool
    ) -> None:
        self._dense, self._axis, self._inputs, self._fold = dense, axis, example_inputs, fold
        self.folded: tuple[str, ...] = ()

    def cut(self, removed: int, generator: torch.Generator) -> tuple[str | None, tuple[Operator, ...]]:
        """Cuts random channels; the reason why that is wrong, if it is, and the slim operators."""
        axis = self._axis
        mask = np.ones(axis.width, dtype=bool)
        mask[torch.randperm(axis.width, generator=generator)[:removed].numpy()] = False
        kept = {axis.name: mask}
        with zeroed(self._dense, axis, mask):
            try:
                slim = rebuild(self._dense, [axis], kept)
                operators = trace_operators(slim, self._inputs)
                difference = wrong_by(self._dense, slim, self._inputs)
                if self._fold and difference is not None:
                    self.folded = fold_constants(self._dense, slim, [axis], kept, self._inputs)
                    difference = wrong_by(self._dense, slim, self._inputs)
                    if self.folded and difference is None:
                        # What is constant in evaluation need not be with the statistics of a batch.
                        difference = wrong_with_statistics(self._dense, slim, self._inputs)
            except GraphError as error:
                return f"cannot be narrowed: {error.got or error.what}", ()
            except Exception as error:  # the user's forward pass, which may not take random parameters
                return f"cannot be tried on random parameters: {type(error).__name__}: {error}", ()
        if difference is not None:
            return (
                f"a zeroed channel still acts on the network (outputs differ by {difference.absolute:.2g}): "
                "an activation with f(0) != 0, or a layer that mixes the channels",
                (),
            )
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
