"""A plain training loop for image classifiers, one epoch at a time, resumable between epochs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.errors import HwpruneError, InputError, TrainingError
from hwprune.graph.twin import copy_of
from hwprune.processes import alike, is_lost_process
from hwprune.train.answers import Answers
from hwprune.train.distillation import Distillation
from hwprune.train.finite import check_finite
from hwprune.train.randomness import Randomness
from hwprune.train.together import add_up_gradients, share_of, shared_statistics, total
from hwprune.workloads import Dataset, accuracy, batches_per_epoch, iterate_batches

Wrap = Callable[[torch.optim.Optimizer], torch.optim.Optimizer]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a network is trained: SGD with Nesterov momentum, linear warm-up, cosine decay.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step.
        learning_rate: At its peak.
        momentum: Of SGD.
        weight_decay: On every parameter.
        warm_up: Fraction of the steps over which the learning rate rises.
        seed: Order of the images, augmentation, and what the network draws (dropout).

    Raises:
        InputError: If a number is out of range.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is too small", expected="at least 1", got=getattr(self, name))
        if not 0 < self.learning_rate < math.inf:
            raise InputError(
                "the learning rate is no positive number", expected="above 0", got=self.learning_rate
            )

    def learning_rate_factor(self, step: int, total_steps: int) -> float:
        """Fraction of the peak learning rate at ``step``."""
        rise = max(1, int(self.warm_up * total_steps))
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total_steps - rise)))


@dataclass(frozen=True, slots=True)
class EpochStats:
    """What one epoch came to.

    Attributes:
        epoch: From 1.
        loss: Mean training loss.
        accuracy: On the test images, in [0, 1].
        seconds: Wall-clock time.
    """

    epoch: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """A trained network that another one learns from.

    Attributes:
        model: The trained one; asked in evaluation mode.
        distillation: How much it says.
        answers: What it has been asked before; ``None`` to ask it every time.
    """

    model: nn.Module
    distillation: Distillation
    answers: Answers | None = None

    def mix(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """The loss from the labels mixed with the divergence from the teacher's answers to ``images``."""
        self.model.eval()
        with torch.no_grad():
            known = self.answers
            answer = self.model(images) if known is None else known.to(images, self.model)
        return self.distillation.mix(loss, logits, answer)


def rehearse(model: nn.Module, dataset: Dataset, recipe: Recipe) -> None:
    """Raises where a network cannot be trained, before anything is: on a copy, with a batch of the smallest.

    Args:
        model: Left as it is, and so are the random states.
        dataset: The data.
        recipe: How it is going to be trained.

    Raises:
        TrainingError: If the network fails in training mode, or its loss is not finite.
    """
    if next(model.parameters(), None) is None:
        raise TrainingError(
            "the network has nothing to train", where=type(model).__name__, expected="parameters", got="none"
        )
    count = len(dataset.train_labels) // batches_per_epoch(dataset, recipe.batch_size)
    trainer = Trainer(copy_of(model), dataset, recipe)
    trainer.model.train()
    images = f"{count} {'image' if count == 1 else 'images'}"
    with trainer.randomness.drawn():
        trainer.add_gradients(
            dataset.train_images[:count],
            dataset.train_labels[:count],
            where=f"{type(model).__name__} in training mode, on a batch of {images}",
        )


@contextmanager
def _failures_told(where: str, count: int) -> Iterator[None]:
    """Tells whatever the network's own code raises on a batch of ``count`` images."""
    try:
        yield
    except HwpruneError:
        raise
    except Exception as error:
        if is_lost_process(error):
            raise
        hint = "call the network in training mode on such a batch to see where it fails"
        if count == 1:
            hint = (
                "batch norms need more than one value of a channel: choose --batch-size and --train-images "
                "so that no batch has a single image"
            )
        raise TrainingError(
            "the network fails in training",
            where=where,
            expected="one loss, and its gradients",
            got=f"{type(error).__name__}: {error}",
            hint=hint,
        ) from error


def _not_finite(loss: float, where: str) -> TrainingError:
    """The error to raise for the sum of all processes' losses."""
    return TrainingError(
        "the loss is not finite",
        where=where,
        expected="a number",
        got=loss,
        hint="try a lower --learning-rate, and look for odd values in the data",
    )


class Trainer:
    """Trains one network on one data set.

    Args:
        model: Trained in place.
        dataset: The data.
        recipe: How.
        wrap: Attaches pruning to the optimiser, or nothing.
        teacher: Whom the network learns from besides the labels, if anyone.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        recipe: Recipe,
        wrap: Wrap = lambda optimizer: optimizer,
        teacher: Teacher | None = None,
    ) -> None:
        self.model, self.dataset, self.recipe, self.teacher = model, dataset, recipe, teacher
        self.total_steps = recipe.epochs * batches_per_epoch(dataset, recipe.batch_size)
        self.optimizer = wrap(
            torch.optim.SGD(
                model.parameters(),
                lr=recipe.learning_rate,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
                nesterov=True,
            )
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: recipe.learning_rate_factor(step, self.total_steps)
        )
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.randomness = Randomness(recipe.seed)
        self.epoch = 0

    @property
    def done(self) -> bool:
        """Whether every epoch has been run."""
        return self.epoch >= self.recipe.epochs

    def run_epoch(self, after_batch: Callable[[float], None] = lambda _loss: None) -> EpochStats:
        """Trains one epoch and scores the test images.

        Args:
            after_batch: Called with the loss of every batch.

        Raises:
            TrainingError: If the network fails on a batch, or a loss or, after the epoch, a weight is not
                finite; the network is then of no use.
        """
        with self.randomness.drawn():
            return self._run_epoch(after_batch)

    def _run_epoch(self, after_batch: Callable[[float], None]) -> EpochStats:
        started = time.perf_counter()
        self.model.train()
        losses: list[float] = []
        # Every process goes through all batches, in the same order and augmented alike, and takes its share.
        batches = iterate_batches(self.dataset, self.recipe.batch_size, self.generator)
        for images, labels in batches:
            self.optimizer.zero_grad(set_to_none=True)
            value = self.add_gradients(
                images, labels, where=f"epoch {self.epoch + 1}, batch {len(losses) + 1}"
            )
            self.optimizer.step()
            self.scheduler.step()
            losses.append(value)
            after_batch(value)
        check_finite(self.model)  # the last step's gradients may have been anything
        self.epoch += 1
        return EpochStats(
            self.epoch, sum(losses) / len(losses), self._accuracy(), time.perf_counter() - started
        )

    def add_gradients(self, images: Tensor, labels: Tensor, *, where: str) -> float:
        """Adds the gradients of a batch to those of the network and returns its mean loss.

        Args:
            images: The whole batch, shape ``(n, c, h, w)``.
            labels: Shape ``(n,)``.
            where: What an error calls the batch.

        Raises:
            TrainingError: If the network fails on it, or its loss is not finite.
        """
        mine, wanted = share_of(images), share_of(labels)
        with _failures_told(where, len(images)):
            loss = self._loss(mine, wanted, len(labels))
            value = total(float(loss.detach()))
            if not math.isfinite(value):
                raise alike(_not_finite(value, where))
            loss.backward()  # type: ignore[no-untyped-call]
            add_up_gradients(self.model.parameters())
        return value

    def _loss(self, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        """What this process's share of a batch adds to the batch's mean loss."""
        with shared_statistics(self.model):
            logits = self.model(images)
        if not isinstance(logits, Tensor):
            raise TrainingError(
                "the network returns no logits in training mode",
                where=type(self.model).__name__,
                expected="one tensor, as in evaluation mode",
                got=type(logits).__name__,
                hint="return the logits alone: auxiliary outputs have no loss here",
            )
        loss = nn.functional.cross_entropy(logits, labels)
        if self.teacher is not None:
            loss = self.teacher.mix(loss, logits, images)
        return loss * (len(labels) / batch_size)

    def _accuracy(self) -> float:
        """On the test images, shared among the processes."""
        labels = self.dataset.test_labels
        mine = share_of(labels)
        return total(accuracy(self.model, share_of(self.dataset.test_images), mine) * len(mine)) / len(labels)

    def state_dict(self) -> dict[str, Any]:
        """Everything that continuing bit for bit needs, as tensors, numbers and strings.

        Every process of a training must ask for it.
        """
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {
                key: value for key, value in self.scheduler.state_dict().items() if key != "lr_lambdas"
            },
            "generator": self.generator.get_state(),
            "randomness": self.randomness.state_dict(),
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None]})
        self.generator.set_state(state["generator"])
        if "randomness" in state:  # checkpoints of earlier versions know nothing of it
            self.randomness.load_state_dict(state["randomness"])
        self.epoch = int(state["epoch"])
