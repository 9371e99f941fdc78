"""Compares every penalty at 30 % of the channels and at 5 % of the weights of a small network.

    python tools/compare_penalties.py --out docs/penalties.md

Every penalty gets the same network, images, epochs, schedule and budget, and its own default strength; none
is tuned for the task. Finished runs are kept as lines of JSON beside OUT, and not repeated.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn

from hwprune.files import write_text
from hwprune.graph.coupling import find_axes
from hwprune.groups.base import Allowance, Grouping, GroupSet, Terms
from hwprune.groups.channel import ChannelGroups
from hwprune.groups.costs import CountBudget
from hwprune.groups.weight import WeightGroups
from hwprune.groups.widths import WidthAllowance
from hwprune.penalties import make_penalty, penalty_names
from hwprune.runtime.environment import environment
from hwprune.targets import Keep
from hwprune.train.loop import Recipe, Trainer
from hwprune.train.prox import ProximalStep
from hwprune.train.schedule import StrengthSchedule
from hwprune.workloads import Dataset, accuracy, batches_per_epoch, load_dataset, make_model

#: What is kept of each granularity.
KEPT = {"channel": Keep(0.3), "weight": Keep(0.05)}
DENSE = "dense"
#: What is another penalty there: the group lasso of single weights is l1.
REPEATS = {("weight", "group-lasso")}
#: Test images scored after every epoch; the whole test set is scored once, at the end.
GLANCE = 100
#: How to read the table.
EXPLANATION = (
    "accuracy on all test images, in percent. Every penalty has the same schedule and its own default",
    "strength, and none was tuned for this task: the order may change with strengths, data and networks,",
    "and differences of the size of the standard deviation (sd) mean nothing. *Before the cut* is how many",
    "groups the penalty itself had left when the support settled, on average; what exceeds the budget was",
    "then cut by norm. `magnitude` pulls nothing and is cut once, `hard-threshold` cuts at every step.",
)


@dataclass(frozen=True, slots=True)
class Run:
    """One training.

    Attributes:
        granularity: A key of :data:`KEPT`, or :data:`DENSE`.
        penalty: A name from the registry, or :data:`DENSE`.
        seed: Of the first weights and of the order of the images.
        model: Name of the network.
        images: Training images.
        epochs: Passes over them.
        batch_size: Images per step.
        learning_rate: At its peak.
    """

    granularity: str
    penalty: str
    seed: int
    model: str
    images: int
    epochs: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        accuracy: On the whole test set, in [0, 1].
        alive_before: Groups that lived when the support settled, before anything was cut.
        kept: Groups in the end.
        total: Groups of the dense network.
        seconds: Of the training.
    """

    accuracy: float
    alive_before: int
    kept: int
    total: int
    seconds: float


class Witness:
    """An allowance that notes how many groups live when it is asked for the survivors."""

    def __init__(self, groups: GroupSet, allowance: Allowance) -> None:
        self._groups, self._allowance = groups, allowance
        self.limit = allowance.limit
        self.record = allowance.record
        self.alive_before = groups.group_count

    def terms(self, grouping: Grouping, alive: Tensor) -> Terms:
        """The allowance's."""
        return self._allowance.terms(grouping, alive)

    def survivors(self, norms: Tensor, alive: Tensor) -> Tensor:
        """The allowance's."""
        self.alive_before = self._groups.groups_alive(alive)
        return self._allowance.survivors(norms, alive)


def make_groups(model: nn.Module, dataset: Dataset, granularity: str) -> tuple[GroupSet, Allowance]:
    """The groups of a network and how many of them are kept."""
    if granularity == "weight":
        weights = WeightGroups(model)
        return weights, weights.allowance(KEPT[granularity].count_of)
    axes = find_axes(model, dataset.test_images[:2])
    channels = ChannelGroups(model, axes, {axis.name: 1 for axis in axes})
    count = KEPT[granularity].count_of(channels.group_count)
    return channels, WidthAllowance(channels, CountBudget(np.array(channels.aligns), count))


def train(run: Run, dataset: Dataset) -> Outcome:
    """Trains one network."""
    started = time.perf_counter()
    channels, size, _ = dataset.image_shape
    model = make_model(
        run.model, in_channels=channels, image_size=size, classes=dataset.classes, seed=run.seed
    )
    recipe = Recipe(run.epochs, run.batch_size, run.learning_rate, seed=run.seed)
    glance = replace(
        dataset, test_images=dataset.test_images[:GLANCE], test_labels=dataset.test_labels[:GLANCE]
    )
    if run.penalty == DENSE:
        trainer = Trainer(model, glance, recipe)
    else:
        groups, allowance = make_groups(model, dataset, run.granularity)
        witness = Witness(groups, allowance)
        penalty = make_penalty(run.penalty, singles=run.granularity == "weight")
        schedule = StrengthSchedule(run.epochs * batches_per_epoch(dataset, run.batch_size))
        proximal = ProximalStep(groups, penalty, witness, schedule)
        trainer = Trainer(model, glance, recipe, proximal.attach)
    while not trainer.done:
        trainer.run_epoch()
    seconds = time.perf_counter() - started
    score = accuracy(model, dataset.test_images, dataset.test_labels)
    if run.penalty == DENSE:
        return Outcome(score, 0, 0, 0, seconds)
    return Outcome(score, witness.alive_before, proximal.groups_alive, groups.group_count, seconds)


def planned(seeds: int, model: str, images: int, epochs: int, batch: int, rate: float) -> Iterator[Run]:
    """Every run of the comparison, seed by seed, so that an unfinished one compares all penalties."""
    for seed in range(seeds):
        yield Run(DENSE, DENSE, seed, model, images, epochs, batch, rate)
        for granularity in KEPT:
            for penalty in penalty_names(singles=granularity == "weight"):
                if (granularity, penalty) not in REPEATS:
                    yield Run(granularity, penalty, seed, model, images, epochs, batch, rate)


def read_finished(path: Path) -> dict[Run, Outcome]:
    """The runs that the lines of ``path`` tell of."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    names = [field.name for field in fields(Run)]
    return {
        Run(**{name: line[name] for name in names}): Outcome(
            **{name: value for name, value in line.items() if name not in names}
        )
        for line in lines
    }


@dataclass(frozen=True, slots=True)
class Row:
    """A penalty over all seeds."""

    penalty: str
    outcomes: Sequence[Outcome]

    @property
    def scores(self) -> list[float]:
        """Accuracies in percent."""
        return [100 * outcome.accuracy for outcome in self.outcomes]

    @property
    def mean(self) -> float:
        """Mean accuracy in percent."""
        return statistics.mean(self.scores)

    @property
    def deviation(self) -> str:
        """Sample standard deviation in points; a dash for a single seed."""
        return f"{statistics.stdev(self.scores):.2f}" if len(self.scores) > 1 else "-"

    def cells(self, dense: float) -> str:
        """A line of the table."""
        before = statistics.mean(outcome.alive_before for outcome in self.outcomes)
        seconds = statistics.mean(outcome.seconds for outcome in self.outcomes)
        first = self.outcomes[0]
        return (
            f"| {self.penalty} | {self.mean:.2f} | {self.deviation} | {self.mean - dense:+.2f} "
            f"| {before:.0f} | {first.kept} of {first.total} | {seconds:.1f} |"
        )


def rows_of(finished: dict[Run, Outcome], granularity: str) -> list[Row]:
    """A row per penalty, best accuracy first."""
    outcomes: dict[str, list[Outcome]] = {}
    for run, outcome in finished.items():
        if run.granularity == granularity:
            outcomes.setdefault(run.penalty, []).append(outcome)
    return sorted((Row(*item) for item in outcomes.items()), key=lambda row: -row.mean)


def as_markdown(finished: dict[Run, Outcome]) -> str:
    """The page."""
    run = next(iter(finished))
    (dense,) = rows_of(finished, DENSE)
    facts = ", ".join(f"{name} {value}" for name, value in environment().items())
    lines = [
        "# Penalties compared",
        "",
        f"Written by `python {shlex.join(sys.argv)}`; {torch.get_num_threads()} threads; {facts}.",
        "",
        f"{run.model} on the first {run.images} training images of Fashion-MNIST, {run.epochs} epochs from",
        f"random weights, batches of {run.batch_size}, peak learning rate {run.learning_rate:g}, "
        f"{len(dense.outcomes)} seeds;",
        *EXPLANATION,
        "",
        f"Dense: {dense.mean:.2f}, sd {dense.deviation}, "
        f"{statistics.mean(outcome.seconds for outcome in dense.outcomes):.1f} s.",
    ]
    for granularity, target in KEPT.items():
        lines += [
            "",
            f"## {target.fraction:.0%} of the {granularity}s kept",
            "",
            "| penalty | accuracy | sd | against dense | before the cut | kept | seconds |",
            "|---|---|---|---|---|---|---|",
            *(row.cells(dense.mean) for row in rows_of(finished, granularity)),
        ]
    return "\n".join(lines) + "\n"


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The page; OUT.jsonl has the runs."
)
@click.option("--model", default="lenet5", show_default=True)
@click.option("--images", default=3000, show_default=True, help="Training images.")
@click.option("--epochs", default=10, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--learning-rate", default=0.03, show_default=True)
def main(
    out: Path, model: str, images: int, epochs: int, seeds: int, batch_size: int, learning_rate: float
) -> None:
    """Trains what is missing, then writes the page."""
    dataset = load_dataset("fashion-mnist").first(images)
    journal = out.with_name(f"{out.name}.jsonl")
    known = read_finished(journal)
    finished: dict[Run, Outcome] = {}
    for run in planned(seeds, model, images, epochs, batch_size, learning_rate):
        if run not in known:
            known[run] = train(run, dataset)
            with journal.open("a") as file:
                file.write(json.dumps({**asdict(run), **asdict(known[run])}) + "\n")
        finished[run] = known[run]
        print(f"{run.granularity} {run.penalty} seed {run.seed}: {known[run]}", flush=True)
    write_text(out, as_markdown(finished))


if __name__ == "__main__":
    main()
