"""The result: a table per target, best mean accuracy first, every network, and what failed."""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from contenders import CONTENDERS
from journal import DENSE, Outcome, Run
from latency import TOLERANCE
from picture import draw
from rows import NOISE, REFERENCES, Row, deviation, rows_of, standard_error
from task import Task

from hwprune.files import write_text
from hwprune.runtime.environment import environment
from hwprune.runtime.timing import Timing


def write_pages(
    out: Path,
    outcomes: Mapping[Run, Outcome],
    timings: Mapping[Run, Timing],
    others: Mapping[Run, Outcome],
    seeds: int,
) -> None:
    """Writes the page and, beside it, the picture.

    Args:
        out: The page.
        outcomes: All runs that were asked for.
        timings: Of those that came to something.
        others: Runs of the same task that are finished and were not asked for.
        seeds: How many were asked for.
    """
    rows = rows_of(outcomes, timings, seeds)
    picture = out.with_suffix(".svg")
    draw(rows, picture)
    write_text(out, "\n".join(_lines(rows, outcomes, others, picture.name)) + "\n")


_EXPLANATION = (
    "Accuracy on all test images, in percent: mean, standard deviation (*sd*) and standard error (*se*) over",
    f"the *seeds* that came to something; *against hwprune* (`{REFERENCES[0]}` where that ran) is the mean",
    "difference to it with the same seed, in points, with its standard error; *lost* is against the dense",
    "network of the same seed.",
    "Latency is what the exported network takes while nothing disturbs it (the fastest twentieth of the",
    "runs), all networks of a seed timed alternately in one run; contenders were tuned by the same measure.",
    f"*Missed* counts the networks outside {-NOISE:.0%} to {TOLERANCE + NOISE:+.0%} of the speed-up asked",
    "for, *trainings* how often a contender was trained to land there, *tries* how many networks were timed",
    "for it (of hwprune, the turns of its closed loop); seconds are those of all its trainings and searches,",
    "without the dense network's; *groups* are the channels in the device's steps.",
)
_HEAD = (
    "| contender | seeds | accuracy | sd | se | against hwprune | lost | latency, us "
    "| measured speed-up | missed | trainings | tries | seconds | groups | channels | parameters |"
)


def cells(row: Row) -> str:
    """A line of the table of a target."""
    speedups = [network.speedup for network in row.networks]
    groups = row.mean(lambda outcome: outcome.groups)
    values = (
        row.name,
        f"{len(row.networks)} of {row.asked}",
        f"{statistics.mean(row.accuracies):.2f}",
        _points(deviation(row.accuracies)),
        _points(standard_error(row.accuracies)),
        f"{statistics.mean(row.ahead):+.2f} ({_points(standard_error(row.ahead))})" if row.ahead else "-",
        f"{statistics.mean(row.lost):+.2f}",
        f"{row.latency_us:.0f}",
        f"{min(speedups):.2f} to {max(speedups):.2f}",
        f"{row.missed}",
        f"{row.mean(lambda outcome: outcome.trainings):.1f}",
        f"{row.mean(lambda outcome: outcome.tries):.1f}",
        f"{row.mean(lambda outcome: outcome.seconds):.0f}",
        f"{groups:.0f}" if groups else "-",
        f"{row.mean(lambda outcome: outcome.channels):.0f}",
        f"{row.mean(lambda outcome: outcome.parameters):,.0f}",
    )
    return "| " + " | ".join(values) + " |"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _lines(
    rows: Sequence[Row], outcomes: Mapping[Run, Outcome], others: Mapping[Run, Outcome], picture: str
) -> list[str]:
    facts = ", ".join(f"{name} {value}" for name, value in environment().items())
    lines = [
        "# Ahead, level or behind, at the same measured latency",
        "",
        f"Written by `python {shlex.join(_portable(sys.argv))}`; {facts}.",
        "",
        *_task_lines(next(iter(outcomes)).task),
        *_EXPLANATION,
        "",
        f"![Accuracy against latency]({picture})",
    ]
    for target in sorted({row.target for row in rows}):
        title = "Dense" if target == 1 else f"{target:g} times faster"
        lines += ["", f"## {title}", "", _HEAD, "|---" * 16 + "|"]
        lines += [cells(row) for row in rows if row.target == target]
    lines += _network_lines(rows)
    present = {run.contender for run in outcomes}
    known = [f"- `{name}`: {entry.what}" for name, entry in CONTENDERS.items() if name in present]
    lines += ["", "## Who is who", "", f"- `{DENSE}`: what everybody is compared with", *known]
    lines += _failure_lines({**outcomes, **others})
    elsewhere = [(run, outcome) for run, outcome in others.items() if not outcome.error]
    if elsewhere:
        lines += ["", "## Finished, and not asked for", ""]
        lines += [f"- {_name(run)}: {outcome.accuracy:.2%}" for run, outcome in elsewhere]
    return lines


def _network_lines(rows: Sequence[Row]) -> list[str]:
    """Every network by itself."""
    lines = [
        "",
        "## Every network",
        "",
        "| contender | target | seed | accuracy | median, us (p10 to p90) | runs | undisturbed, us "
        "| measured speed-up | groups |",
        "|---" * 9 + "|",
    ]
    for network in (network for row in rows for network in row.networks):
        run, timing = network.run, network.timing
        lines.append(
            f"| {run.contender} | {run.speedup:g} | {run.seed} | {100 * network.outcome.accuracy:.2f} "
            f"| {timing.median_us:.1f} ({timing.p10_us:.1f} to {timing.p90_us:.1f}) | {timing.runs} "
            f"| {timing.undisturbed_us:.1f} | {network.speedup:.2f} | {network.outcome.groups or '-'} |"
        )
    return lines


def _failure_lines(outcomes: Mapping[Run, Outcome]) -> list[str]:
    """What came to nothing, also where it was not asked for this time."""
    failed = [f"- {_name(run)}: {outcome.error}" for run, outcome in outcomes.items() if outcome.error]
    return ["", "## Failed", "", *failed] if failed else []


def _name(run: Run) -> str:
    strength = f", regularisation {run.regularisation:g}" if run.regularisation else ""
    return f"{run.contender}, {run.speedup:g}x, seed {run.seed}{strength}"


def _task_lines(task: Task) -> list[str]:
    if task.left:
        start = (
            f"All start from the dense network of the same seed, trained for {task.epochs} epochs, and have"
        )
        start += f" {task.left} epochs left."
    else:
        start = f"All have {task.epochs} epochs from random weights; who cuts once trains dense until then."
    return [
        f"{task.network} with {task.fraction:g} of its channels, the first {task.images} training images of",
        f"Fashion-MNIST, batches of {task.batch_size}, peak learning rate {task.learning_rate:g}, timed on",
        f"`{task.device}`. {start}",
    ]


def _portable(words: Sequence[str]) -> list[str]:
    """A command without where this machine keeps what it trains.

    >>> _portable(["tools/benchmark", "--work", "/somewhere", "--seeds", "3"])
    ['tools/benchmark', '--seeds', '3']
    """
    places = {place for place, word in enumerate(words) if word == "--work"}
    kept = [word for place, word in enumerate(words) if not {place, place - 1} & places]
    return [word for word in kept if not word.startswith("--work=")]
