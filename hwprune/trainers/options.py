"""What callbacks share: how a compressor is made from what a trainer knows when training starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset

from hwprune.compressor import Compressor
from hwprune.device.profile import DeviceProfile
from hwprune.errors import InputError
from hwprune.granularities import CHANNEL
from hwprune.graph.record import ExampleInputs
from hwprune.groups import MakeMasked
from hwprune.notes import log_note
from hwprune.targets import Target
from hwprune.train.prox import ProximalStep
from hwprune.train.randomness import random_states_kept
from hwprune.train.schedule import StrengthSchedule

#: Samples that example inputs are made of where none are given.
SAMPLES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """What a :class:`~hwprune.Compressor` takes besides what a trainer knows.

    Attributes:
        granularity: What a group is.
        penalty: Which penalty drives the groups.
        schedule: From the number of optimiser steps to the strength of each.
        keep: Names of modules that must stay whole.
        measure: Whether to measure on this machine.
        notify: Called with one line for everything the user should know; logged by default.
        reconstruct: Training inputs to fit the survivors of a trained network on; see
            :meth:`~hwprune.Compressor.reconstruct_on`. A training that is resumed after that does not fit
            them again; one that is resumed before is refused: the whole network is not there any more.
    """

    granularity: str | MakeMasked = CHANNEL
    penalty: str = "envelope"
    schedule: Callable[[int], StrengthSchedule] = StrengthSchedule
    keep: Sequence[str] = ()
    measure: bool = True
    notify: Callable[[str], None] = log_note
    reconstruct: ExampleInputs | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What to reach, before there is a network.

    Attributes:
        profile: The device.
        target: What to reach.
        example_inputs: What the network is called with; ``None`` makes them of the training data.
        options: The rest.
    """

    profile: DeviceProfile
    target: Target
    example_inputs: ExampleInputs | None
    options: Options

    def start(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: float, loader: object
    ) -> Compressor:
        """Makes the compressor and attaches it to the optimiser that the trainer made.

        Args:
            model: The network that the optimiser trains.
            optimizer: The trainer's; it may have been resumed already.
            total_steps: Optimiser steps of the whole training.
            loader: The trainer's loader of training batches; none of its batches is drawn.

        Raises:
            InputError: If the training has no end, example inputs are needed and cannot be made, or survivors
                are to be fitted in a training that was interrupted before. Also from loading the optimiser's
                state afterwards.
            HwpruneError: For whatever else the compressor refuses.
        """
        if not 0 < total_steps < float("inf"):
            raise InputError(
                "the schedule of the pruning needs to know how long the training is",
                expected="a number of epochs or optimizer steps in the trainer",
                got=total_steps,
            )
        inputs = self.example_inputs
        if inputs is None:
            inputs = in_precision_of(model, example_inputs_of(loader))
        options = self.options
        compressor = Compressor(
            model,
            inputs,
            self.profile,
            self.target,
            total_steps=int(total_steps),
            granularity=options.granularity,
            penalty=options.penalty,
            schedule=options.schedule(int(total_steps)),
            keep=options.keep,
            measure=options.measure,
            notify=options.notify,
        )
        compressor.wrap(optimizer)
        if options.reconstruct is not None:
            proximal = compressor.proximal
            _refuse_unsettled(proximal)  # some trainers restore the optimiser before this, others after
            optimizer.register_load_state_dict_post_hook(lambda _optimizer: _refuse_unsettled(proximal))
            if not proximal.step:
                compressor.reconstruct_on(options.reconstruct)
        return compressor


def _refuse_unsettled(proximal: ProximalStep) -> None:
    """Raises where a training goes on that has changed the network already, but not fitted its survivors."""
    if proximal.step and not proximal.settled:
        raise InputError(
            "the training was interrupted before its survivors were fitted, and the network that they are to "
            "be fitted to has changed since",
            where="Options.reconstruct",
            expected="a checkpoint from after the survivors were fixed",
            got=f"one after {proximal.step} steps",
            hint="start again from the trained weights, or go on without reconstruct",
        )


def in_precision_of(model: nn.Module, inputs: ExampleInputs) -> ExampleInputs:
    """Inputs in the precision of a network whose weights are all of one, as trainers hand them over.

    Args:
        model: The network.
        inputs: What it is called with; single precision is converted, nothing else.
    """
    kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if len(kinds) != 1:
        return inputs
    (kind,) = kinds

    def converted(leaf: Any) -> Any:
        return leaf.to(kind) if isinstance(leaf, Tensor) and leaf.dtype == torch.float32 else leaf

    found: ExampleInputs = tree_map(converted, inputs)
    return found


def example_inputs_of(loader: object) -> ExampleInputs:
    """Inputs made of the first samples of a loader's data set; no batch is drawn, no random state moves.

    Args:
        loader: A loader with a data set that can be indexed.

    Returns:
        The first entry of a batch that is a sequence; a mapping without its labels; a tensor as it is.

    Raises:
        InputError: If it is another kind of loader, or its batches are something else.
    """
    hint = "pass example_inputs"
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or loader.batch_sampler is None
    ):
        raise InputError(
            "example inputs cannot be made of the training data",
            expected="a DataLoader that puts samples of an indexed data set together",
            got=type(loader).__name__,
            hint=hint,
        )
    with random_states_kept():  # augmentation may draw random numbers; the training must not notice
        batch: Any = loader.collate_fn([loader.dataset[index] for index in range(SAMPLES)])
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if not name.startswith("label")}
    inputs = batch[0] if isinstance(batch, Sequence) else batch
    if not isinstance(inputs, Tensor):
        raise InputError(
            "the inputs of the network cannot be told from the labels",
            expected="batches (inputs, labels) or mappings",
            got=f"{type(batch).__name__} of {type(inputs).__name__}",
            hint=hint,
        )
    return inputs
