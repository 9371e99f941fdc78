"""What is compared: a task, one run of it, and how its networks are made and trained."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from latency import Stopwatch
from torch import Tensor, nn

import hwprune
from hwprune.cli.training import RECONSTRUCTION_IMAGES
from hwprune.device.profile import DeviceProfile
from hwprune.graph.axes import BoolArray, ChannelAxis
from hwprune.graph.coupling import find_axes
from hwprune.graph.trace import trace_operators
from hwprune.notes import log_note
from hwprune.plan import axis_aligns
from hwprune.runtime.bench import ThisMachine
from hwprune.surgery.rebuild import rebuild
from hwprune.train.distillation import Distillation
from hwprune.train.loop import Recipe, Teacher, Trainer, Wrap
from hwprune.workloads import Dataset, accuracy, load_dataset, make_model, spread

DATA = "fashion-mnist"
#: Test images scored after every epoch; the whole test set is scored once, at the end.
GLANCE = 100
#: Part of the schedule after which those that start dense and are cut once, are cut.
DENSE_PART = 0.4
#: The learning rate of a fine-tuning, as a fraction of the first training's.
FINE_TUNE_RATE = 0.3
#: Half of the loss from the dense network's answers.
DISTILLATION = Distillation(0.5)


@dataclass(frozen=True, slots=True)
class Task:
    """What every contender gets.

    Attributes:
        network: A built-in network.
        fraction: Of its channels, in every layer: below 1 it is a thinner version of the network.
        images: Training images.
        epochs: Of the dense network, and of everybody who starts from scratch.
        left: Epochs of those who start from the trained dense network; 0: everybody starts from scratch.
        batch_size: Images per step.
        learning_rate: At its peak.
        device: Name or folder of the profile.
    """

    network: str
    fraction: float
    images: int
    epochs: int
    left: int
    batch_size: int
    learning_rate: float
    device: str

    @property
    def recipe(self) -> Recipe:
        """Of the dense network and of everybody who starts from scratch."""
        return Recipe(self.epochs, self.batch_size, self.learning_rate)

    @property
    def fine_tuning(self) -> Recipe:
        """Of those who start from the trained network."""
        return replace(self.recipe, epochs=self.left, learning_rate=FINE_TUNE_RATE * self.learning_rate)

    def dataset(self) -> Dataset:
        """The data; few test images, as trainings score after every epoch."""
        return load_dataset(DATA).first(self.images)

    def untrained(self, seed: int) -> nn.Module:
        """The dense network with random weights."""
        data = self.dataset()
        network = make_model(
            self.network,
            in_channels=data.image_shape[0],
            image_size=data.image_shape[1],
            classes=data.classes,
            seed=seed,
        )
        return network if self.fraction == 1 else narrowed(network, data.test_images[:2], self.fraction, seed)


@dataclass(frozen=True, eq=False)
class Job:
    """One run of one contender.

    Attributes:
        task: The task.
        seed: Of the first weights and of the order of the images.
        speedup: How many times faster than the dense network, measured.
        dense: The dense network: trained where the task starts from a trained one.
        stopwatch: Times networks beside the dense one.
        regularisation: Strength of the contender's own regulariser; 0: the package's default.
    """

    task: Task
    seed: int
    speedup: float
    dense: nn.Module
    stopwatch: Stopwatch
    regularisation: float = 0.0

    @cached_property
    def dataset(self) -> Dataset:
        """The data."""
        return self.task.dataset()

    @property
    def example(self) -> Tensor:
        """Two images."""
        return self.dataset.test_images[:2]

    @property
    def profile(self) -> DeviceProfile:
        """The device."""
        return self.stopwatch.profile

    @property
    def starts_trained(self) -> bool:
        """Whether the contenders start from the trained dense network."""
        return self.task.left > 0

    @property
    def recipe(self) -> Recipe:
        """Of the contenders."""
        recipe = self.task.fine_tuning if self.starts_trained else self.task.recipe
        return replace(recipe, seed=self.seed)

    @cached_property
    def axes(self) -> tuple[ChannelAxis, ...]:
        """The dense network's channel axes."""
        return tuple(find_axes(self.dense, self.example))

    @cached_property
    def local_profile(self) -> DeviceProfile:
        """The device, made true for this machine as hwprune makes it."""
        operators = trace_operators(self.dense, self.example)
        return ThisMachine().localize(self.profile, operators, notify=log_note)

    @cached_property
    def aligns(self) -> dict[str, int]:
        """Channels that cost the same on the device, per axis: the steps that hwprune takes, too."""
        return axis_aligns(self.axes, trace_operators(self.dense, self.example), self.local_profile)

    @property
    def reconstruction_images(self) -> Tensor:
        """Training images on which what stays is fitted."""
        return spread(self.dataset.train_images, RECONSTRUCTION_IMAGES)

    @property
    def teacher(self) -> Teacher:
        """The trained dense network, to learn from."""
        return Teacher(self.copy_of_dense(), DISTILLATION)

    def copy_of_dense(self) -> nn.Module:
        """The dense network, to be changed at will."""
        return copy.deepcopy(self.dense)

    def trainer(
        self,
        network: nn.Module,
        recipe: Recipe | None = None,
        wrap: Wrap | None = None,
        teacher: Teacher | None = None,
    ) -> Trainer:
        """A training of ``network``."""
        return Trainer(
            network, glanced(self.dataset), recipe or self.recipe, wrap or (lambda same: same), teacher
        )


def glanced(dataset: Dataset) -> Dataset:
    """The data with a few of the test images, for the score after every epoch."""
    return replace(
        dataset, test_images=dataset.test_images[:GLANCE], test_labels=dataset.test_labels[:GLANCE]
    )


def run_epochs(trainer: Trainer, epochs: int | None = None) -> None:
    """Trains to the end of the recipe, or for some epochs of it."""
    last = trainer.recipe.epochs if epochs is None else min(trainer.epoch + epochs, trainer.recipe.epochs)
    while trainer.epoch < last:
        trainer.run_epoch()


def score(network: nn.Module, dataset: Dataset) -> float:
    """Accuracy on all test images, in [0, 1]."""
    return accuracy(network, dataset.test_images, dataset.test_labels)


def uniform(
    axes: tuple[ChannelAxis, ...], fraction: float, aligns: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The same fraction of the channels of every axis that may shrink, as nearly as steps allow.

    The steps of all axes together are the fraction, rounded; every axis gets its own fraction rounded down,
    and those with the largest remainders get a step more. Were every axis rounded by itself, axes of
    equal width would change all at once, and most latencies could not be reached.

    Args:
        axes: The network's.
        fraction: In (0, 1].
        aligns: Axis name to the step that widths are multiples of; 1 where absent.

    Returns:
        Axis name to width, at least one step.
    """
    free = [axis for axis in axes if axis.pinned is None]
    steps = [1 if aligns is None else aligns[axis.name] for axis in free]
    ideal = [fraction * axis.width / step for axis, step in zip(free, steps, strict=True)]
    counts = [math.floor(count) for count in ideal]
    largest = sorted(range(len(free)), key=lambda index: counts[index] - ideal[index])
    for index in largest[: max(0, round(sum(ideal)) - sum(counts))]:
        counts[index] += 1
    return {
        axis.name: min(axis.width, max(1, count) * step)
        for axis, count, step in zip(free, counts, steps, strict=True)
    }


def first_channels(axes: tuple[ChannelAxis, ...], widths: Mapping[str, int]) -> dict[str, BoolArray]:
    """Masks that keep the first channels of every axis."""
    by_name = {axis.name: axis for axis in axes}
    return {name: np.arange(by_name[name].width) < width for name, width in widths.items()}


def reinitialised(network: nn.Module, seed: int) -> nn.Module:
    """Gives every convolution and linear layer fresh weights, as the built-in networks have them."""
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
    return network


def narrowed(network: nn.Module, example: Tensor, fraction: float, seed: int) -> nn.Module:
    """An untrained network with a fraction of the channels."""
    axes = tuple(find_axes(network, example))
    return reinitialised(rebuild(network, axes, first_channels(axes, uniform(axes, fraction))), seed)


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """What a contender made.

    Attributes:
        network: Trained.
        trainings: How often it had to be trained to land on the target.
        tries: How many networks were timed to land there; of hwprune, the turns of its closed loop.
        seconds: Of all trainings and searches.
    """

    network: nn.Module
    trainings: int = 1
    tries: int = 0
    seconds: float = math.nan


def timed(make: Callable[[Job], Made], job: Job) -> Made:
    """Runs a contender and notes how long it took."""
    started = time.perf_counter()
    return replace(make(job), seconds=time.perf_counter() - started)


def load_device(name: str) -> DeviceProfile:
    """The profile of the device."""
    return hwprune.load_profile(name)
