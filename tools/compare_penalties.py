"""Compares every penalty at 30 % of the channels and at 5 % of the weights of a small network.

    python tools/compare_penalties.py --out docs/penalties.md

Every penalty gets the same network, images, epochs, schedule and budget, and its own default strength; none
is tuned for the task. Finished runs are kept as lines of JSON beside OUT, and not repeated while code and
versions stay what they are.
"""

from __future__ import annotations

import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from code_fingerprint import fingerprint
from compared_runs import Outcome, Row, Witness, finish_all, rows_of, table
from torch import nn

from hwprune.files import write_text
from hwprune.graph.coupling import find_axes
from hwprune.groups.base import Allowance, GroupSet
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
#: A penalty that has left more than this fraction of the groups has not pruned them.
BARELY_PRUNED = 0.9
#: How to read the table.
EXPLANATION = (
    "accuracy on all test images, in percent. Every penalty has the same schedule and its own default",
    "strength, and none was tuned for this task: the order may change with strengths, data and networks,",
    "and differences of the size of the standard deviation (sd) mean nothing. *Before the cut* is how many",
    "groups the penalty itself had left when the support settled, on average; what exceeds the budget was",
    "then cut by norm. `magnitude` pulls nothing and is cut once, `hard-threshold` cuts at every step, and",
    "so does `sr-ste`, which trains on what it cuts, so that it may come back.",
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


def penalties_at(finished: dict[Run, Outcome], granularity: str) -> list[Row]:
    """A row per penalty."""
    return rows_of(finished, lambda run: run.penalty if run.granularity == granularity else None)


def in_words(rows: Sequence[Row]) -> list[str]:
    """Who is ahead of the envelope, and whose rows tell of the cut more than of the penalty."""
    envelope = next(row for row in rows if row.name == "envelope")
    ahead = [row for row in rows if row.mean > envelope.mean]
    named = ", ".join(f"{row.name} ({row.mean - envelope.mean:.2f} points)" for row in ahead)
    lines = [f"Ahead of the envelope: {named or 'none'}."]
    barely = [row.name for row in rows if row.name != "magnitude" and _left_by_itself(row) > BARELY_PRUNED]
    if barely:
        lines.append(
            f"Of {', '.join(barely)} over {BARELY_PRUNED:.0%} of the groups were left before the cut: at its "
            "default strength the penalty has shrunk them all, and the cut by norm has chosen."
        )
    return lines


def _left_by_itself(row: Row) -> float:
    """The fraction of the groups that a penalty had left before the cut."""
    return statistics.mean(outcome.alive_before / outcome.total for outcome in row.outcomes)


def as_markdown(finished: dict[Run, Outcome]) -> str:
    """The page."""
    run = next(iter(finished))
    (dense,) = penalties_at(finished, DENSE)
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
        f"Dense: {dense.mean:.2f}, sd {dense.deviation}, {dense.seconds:.1f} s.",
    ]
    for granularity, target in KEPT.items():
        lines += [
            "",
            f"## {target.fraction:.0%} of the {granularity}s kept",
            "",
            *table("penalty", penalties_at(finished, granularity), dense.mean),
            "",
            *in_words(penalties_at(finished, granularity)),
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
    planned_runs = planned(seeds, model, images, epochs, batch_size, learning_rate)
    journal = out.with_name(f"{out.name}.jsonl")
    here = Path(__file__).parent
    made_by = fingerprint({name: here / name for name in (Path(__file__).name, "compared_runs.py")})
    finished = finish_all(planned_runs, lambda run: train(run, dataset), journal, Run, made_by)
    write_text(out, as_markdown(finished))


if __name__ == "__main__":
    main()
