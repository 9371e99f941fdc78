"""The trainings that ``compare_sparsity.py`` compares: networks, patterns of zeros, methods and starts."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from compared_runs import Outcome, Witness
from torch import nn

from hwprune.groups.base import MaskedGroups
from hwprune.groups.block import BlockGroups
from hwprune.groups.weight import WeightGroups
from hwprune.penalties import make_penalty
from hwprune.targets import Keep
from hwprune.train.loop import Recipe, Trainer, Wrap
from hwprune.train.prox import ProximalStep
from hwprune.train.schedule import StrengthSchedule
from hwprune.workloads import Dataset, accuracy, batches_per_epoch, load_dataset, make_model

DENSE, MAGNITUDE = "dense", "magnitude"
#: A method that is no penalty.
ASP = "asp"
#: Where the pruning starts from.
RANDOM, TRAINED = "random", "trained"
#: Weights per block.
BLOCK = 4
#: Test images scored after every epoch; the whole test set is scored once, at the end.
GLANCE = 100


@dataclass(frozen=True, slots=True)
class Network:
    """A network and how long it is trained.

    Attributes:
        title: What the page calls it.
        model: As :func:`hwprune.workloads.make_model` takes it.
        images: Training images.
        epochs: Passes over them from random weights.
        further: Passes over them after those, from the dense network that they made.
        batch_size: Images per step.
        learning_rate: At its peak.
    """

    title: str
    model: str
    images: int
    epochs: int
    further: int
    batch_size: int = 64
    learning_rate: float = 0.03


@dataclass(frozen=True, slots=True)
class Pattern:
    """What is kept, and the methods that are compared at it.

    Attributes:
        title: What the page calls it.
        kept: Fraction of the weights.
        in_blocks: Whether every block keeps that fraction.
        methods: Names of penalties, or :data:`ASP`.
    """

    title: str
    kept: Keep
    in_blocks: bool
    methods: tuple[str, ...]


NETWORKS = {
    "lenet300": Network("LeNet-300-100", "lenet300:LeNet300", images=5000, epochs=6, further=3),
    "lenet5": Network("LeNet-5", "lenet5", images=1500, epochs=6, further=2),
}
_OF_WEIGHTS = ("envelope", "wgsef", "hard-threshold", "halo", "profiled-halo", "l1", MAGNITUDE)
_OF_BLOCKS = ("envelope", "sr-ste", MAGNITUDE, ASP)
PATTERNS = {
    "95%": Pattern("95 % of the weights zero", Keep(0.05), False, _OF_WEIGHTS),
    "99%": Pattern("99 % of the weights zero", Keep(0.01), False, _OF_WEIGHTS),
    "2:4": Pattern("2:4", Keep(0.5), True, _OF_BLOCKS),
    "1:4": Pattern("1:4", Keep(0.25), True, _OF_BLOCKS),
}


@dataclass(frozen=True, slots=True)
class Run:
    """One training.

    Attributes:
        network: A key of :data:`NETWORKS`.
        start: :data:`RANDOM` or :data:`TRAINED`.
        pattern: A key of :data:`PATTERNS`, or :data:`DENSE`.
        method: One of the pattern's, or :data:`DENSE`.
        seed: Of the first weights and of the order of the images.
        images: Training images.
        epochs: Passes over them, without those that made a trained start.
    """

    network: str
    start: str
    pattern: str
    method: str
    seed: int
    images: int
    epochs: int


@dataclass(frozen=True, slots=True)
class Survey:
    """How many prunable weights lived before anything was cut, live in the end, and are in the network."""

    alive_before: int
    kept: int
    total: int


class Training:
    """Trains one network on one data set, for a run.

    Args:
        model: Trained in place.
        run: What is wanted.
        dataset: The data.
    """

    def __init__(self, model: nn.Module, run: Run, dataset: Dataset) -> None:
        self.model, self.run, self.dataset = model, run, dataset

    def finish(self) -> Survey:
        """Spends the epochs of the run on its method."""
        if self.run.method == DENSE:
            self.fit(self.run.epochs)
            return Survey(0, 0, 0)
        if self.run.method == ASP:
            first = self.run.epochs // 2
            self.fit(first)
            return self._pull(MAGNITUDE, self.run.epochs - first, trained=True)
        return self._pull(self.run.method, self.run.epochs, trained=self.run.start == TRAINED)

    def fit(self, epochs: int, wrap: Wrap = lambda optimizer: optimizer) -> None:
        """So many epochs, over which the learning rate rises and falls once."""
        network = NETWORKS[self.run.network]
        recipe = Recipe(epochs, network.batch_size, network.learning_rate, seed=self.run.seed)
        images, labels = self.dataset.test_images[:GLANCE], self.dataset.test_labels[:GLANCE]
        glance = replace(self.dataset, test_images=images, test_labels=labels)
        trainer = Trainer(self.model, glance, recipe, wrap)
        while not trainer.done:
            trainer.run_epoch()

    def _pull(self, penalty: str, epochs: int, *, trained: bool) -> Survey:
        """A penalty's pull and cut; trained networks are cut by magnitude in the first step."""
        groups, pattern = self._groups(), PATTERNS[self.run.pattern]
        witness = Witness(groups, groups.allowance(pattern.kept.count_of))
        steps = epochs * batches_per_epoch(self.dataset, NETWORKS[self.run.network].batch_size)
        schedule = StrengthSchedule(steps)
        if trained:
            schedule = StrengthSchedule.from_trained(steps, pull=penalty != MAGNITUDE)
        proximal = ProximalStep(groups, make_penalty(penalty), witness, schedule)
        self.fit(epochs, proximal.attach)
        return Survey(witness.alive_before, proximal.groups_alive, groups.group_count)

    def _groups(self) -> MaskedGroups:
        if PATTERNS[self.run.pattern].in_blocks:
            return BlockGroups(self.model, size=BLOCK)
        return WeightGroups(self.model)


@lru_cache(maxsize=1)
def data_of(images: int) -> Dataset:
    """The first training images as they are: none is shifted or mirrored."""
    return replace(load_dataset("fashion-mnist").first(images), augment=None)


@lru_cache(maxsize=1)
def trained_start(dense: Run) -> nn.Module:
    """The network that a dense run from random weights makes; not to be changed."""
    model, dataset = random_start(dense), data_of(dense.images)
    Training(model, dense, dataset).finish()
    return model


def random_start(run: Run) -> nn.Module:
    """A fresh network."""
    dataset = data_of(run.images)
    return make_model(
        NETWORKS[run.network].model,
        in_channels=dataset.image_shape[0],
        image_size=dataset.image_size,
        classes=dataset.classes,
        seed=run.seed,
    )


def train(run: Run) -> Outcome:
    """Trains one network; seconds are those of the processor, after a trained start was made."""
    dataset = data_of(run.images)
    if run.start == TRAINED:
        epochs = NETWORKS[run.network].epochs
        start = replace(run, start=RANDOM, pattern=DENSE, method=DENSE, epochs=epochs)
        model = copy.deepcopy(trained_start(start))
    else:
        model = random_start(run)
    started = time.process_time()
    survey = Training(model, run, dataset).finish()
    seconds = time.process_time() - started
    score = accuracy(model, dataset.test_images, dataset.test_labels)
    return Outcome(score, survey.alive_before, survey.kept, survey.total, seconds)


def planned(seeds: int, networks: Sequence[str], starts: Sequence[str]) -> Iterator[Run]:
    """Every run, seed by seed, so that an unfinished comparison compares all methods."""
    for start in starts:
        for seed in range(seeds):
            for name in networks:
                network = NETWORKS[name]
                epochs = network.epochs if start == RANDOM else network.further
                yield Run(name, start, DENSE, DENSE, seed, network.images, epochs)
                for pattern in PATTERNS:
                    for method in methods_of(pattern, start):
                        yield Run(name, start, pattern, method, seed, network.images, epochs)


def methods_of(pattern: str, start: str) -> list[str]:
    """What is compared; from a trained start magnitude is what ASP is."""
    return [name for name in PATTERNS[pattern].methods if start == RANDOM or name != ASP]
