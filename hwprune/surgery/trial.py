"""One trial: channels leave a random copy of a network, and both are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.errors import GraphError
from hwprune.graph.axes import BoolArray, ChannelAxis
from hwprune.graph.record import ExampleInputs
from hwprune.graph.trace import trace_operators
from hwprune.operators import Operator
from hwprune.surgery.fold import fold_constants
from hwprune.surgery.outputs import outputs_of, wrong_by
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.verify import wrong_with_statistics


class Trial:
    """Axes, cut together; most of the time a single one.

    Args:
        dense: The randomised network.
        axes: The axes.
        example_inputs: What it is called with.
        fold: See :func:`hwprune.surgery.prove.prove`.
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


def half_of(width: int, align: int) -> int:
    """How many channels a trial cuts: about half of them, as what is small in one adds up over many."""
    return min(align * max(width // align // 2, 1), width - 1)


class zeroed:  # noqa: N801  (used as a context manager, like torch.no_grad)
    """Within the context the producers of the masked-out channels are zero; afterwards as before.

    Args:
        model: The network; changed in place and restored.
        axis: The axis to mask.
        mask: Shape ``(width,)``, ``False`` for channels to zero.
    """

    def __init__(self, model: nn.Module, axis: ChannelAxis, mask: BoolArray) -> None:
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
