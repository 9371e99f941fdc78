"""Whether the outputs of a network show its channels: equal outputs prove nothing where they always are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.graph.axes import ChannelAxis
from hwprune.graph.record import ExampleInputs
from hwprune.surgery.outputs import compare, outputs_of
from hwprune.surgery.random_copies import finite_copy
from hwprune.surgery.random_inputs import random_inputs
from hwprune.surgery.trial import Trial, zeroed

#: Random copies that are made where the outputs of the first do not show an axis.
COPIES = 4


class Shown:
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


class Copies:
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
    def _made(self) -> list[tuple[nn.Module, Shown]]:
        made = [finite_copy(self._model, self._inputs, generator) for generator in self._generators]
        return [(dense, Shown(dense, self._inputs)) for dense in made]

    def try_elsewhere(self, axis: ChannelAxis, removed: int, *, fold: bool) -> str | None:
        """Cuts an axis on the first copy that shows it; the reason why it must stay, if there is one."""
        for (dense, shown), generator in zip(self._made, self._generators, strict=True):
            if shown.depends_on(axis):
                trial = Trial(dense, (axis,), self._inputs, fold=fold)
                return trial.cut({axis.name: removed}, generator)[0]
        return "the outputs do not show whether its channels are there"
