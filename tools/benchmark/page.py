"""The result: a table per target, best mean accuracy first, and a picture of accuracy against latency."""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from contenders import CONTENDERS
from journal import DENSE, Outcome, Run
from latency import TOLERANCE
from task import Task

from hwprune.files import write_text
from hwprune.runtime.environment import environment
from hwprune.runtime.timing import Timing

#: Landed, within the noise of two measurements.
NOISE = 0.01


@dataclass(frozen=True, slots=True)
class Row:
    """A contender at a target over all seeds.

    Attributes:
        name: The contender.
        target: How many times faster than dense; 1 for the dense network.
        outcomes: By seed.
        speedups: Measured, by seed.
        latencies_us: Measured, undisturbed, by seed.
        dense: Accuracy of the dense network, by seed.
    """

    name: str
    target: float
    outcomes: Sequence[Outcome]
    speedups: Sequence[float]
    latencies_us: Sequence[float]
    dense: Sequence[float]

    @property
    def mean(self) -> float:
        """Mean accuracy in percent."""
        return 100 * statistics.mean(outcome.accuracy for outcome in self.outcomes)

    @property
    def deviation(self) -> float:
        """Sample standard deviation of the accuracy in points; 0 for a single seed."""
        scores = [100 * outcome.accuracy for outcome in self.outcomes]
        return statistics.stdev(scores) if len(scores) > 1 else 0.0

    @property
    def lost(self) -> float:
        """Mean accuracy lost against the dense network of the same seed, in points."""
        return 100 * statistics.mean(
            dense - outcome.accuracy for dense, outcome in zip(self.dense, self.outcomes, strict=True)
        )

    @property
    def missed(self) -> int:
        """Seeds whose network is slower than was asked for, or faster by more than the tolerance."""
        low, high = self.target * (1 - NOISE), self.target * (1 + TOLERANCE + NOISE)
        return sum(not low <= speedup <= high for speedup in self.speedups)

    def cells(self) -> str:
        """A line of the table."""
        values = (
            self.name,
            f"{self.mean:.2f}",
            f"{self.deviation:.2f}",
            f"{self.lost:+.2f}",
            f"{statistics.mean(self.latencies_us):.0f}",
            f"{min(self.speedups):.2f} to {max(self.speedups):.2f}",
            f"{self.missed}",
            f"{self._mean('trainings'):.1f}",
            f"{self._mean('tries'):.1f}",
            f"{self._mean('seconds'):.0f}",
            f"{self._mean('channels'):.0f}",
            f"{self._mean('parameters'):,.0f}",
        )
        return "| " + " | ".join(values) + " |"

    def _mean(self, attribute: str) -> float:
        return statistics.mean(float(getattr(outcome, attribute)) for outcome in self.outcomes)


def rows_of(outcomes: Mapping[Run, Outcome], timings: Mapping[Run, Timing]) -> list[Row]:
    """A row per target and contender: targets in order, best accuracy first."""
    together: dict[tuple[float, str], list[Run]] = {}
    for run in timings:
        together.setdefault((run.speedup, run.contender), []).append(run)
    rows = [
        Row(
            name,
            target,
            [outcomes[run] for run in runs],
            [timings[run.dense].undisturbed_us / timings[run].undisturbed_us for run in runs],
            [timings[run].undisturbed_us for run in runs],
            [outcomes[run.dense].accuracy for run in runs],
        )
        for (target, name), runs in together.items()
    ]
    return sorted(rows, key=lambda row: (row.target, -row.mean))


def write_pages(out: Path, outcomes: Mapping[Run, Outcome], timings: Mapping[Run, Timing]) -> None:
    """Writes the page and, beside it, the picture."""
    rows = rows_of(outcomes, timings)
    picture = out.with_suffix(".svg")
    draw(rows, picture)
    write_text(out, "\n".join(_lines(rows, outcomes, picture.name)) + "\n")


_EXPLANATION = (
    "Accuracy on all test images, in percent, mean and standard deviation over the seeds; *lost* against the",
    "dense network of the same seed. Latency is what the exported network takes while nothing disturbs it",
    "(the fastest twentieth of the runs), all networks of a seed timed alternately in one run; contenders",
    f"were tuned by the same measure. *Missed* counts the networks outside {-NOISE:.0%} to",
    f"{TOLERANCE + NOISE:+.0%} of the speed-up asked for, *trainings* how often a contender was trained to",
    "land there, *tries* how many networks were timed for it (of hwprune, the turns of its closed loop);",
    "seconds are those of all its trainings and searches, without the dense network's.",
)
_HEAD = (
    "| contender | accuracy | sd | lost | latency, us | measured speed-up | missed "
    "| trainings | tries | seconds | channels | parameters |"
)


def _lines(rows: Sequence[Row], outcomes: Mapping[Run, Outcome], picture: str) -> list[str]:
    facts = ", ".join(f"{name} {value}" for name, value in environment().items())
    lines = [
        "# Ahead, level or behind, at the same measured latency",
        "",
        f"Written by `python {shlex.join(word for word in sys.argv if word != '--page-only')}`; {facts}.",
        "",
        *_task_lines(next(iter(outcomes)).task),
        *_EXPLANATION,
        "",
        f"![Accuracy against latency]({picture})",
    ]
    for target in sorted({row.target for row in rows}):
        seeds = max(len(row.outcomes) for row in rows if row.target == target)
        title = "Dense" if target == 1 else f"{target:g} times faster"
        lines += [
            "",
            f"## {title} ({seeds} seeds)",
            "",
            _HEAD,
            "|---" * 12 + "|",
        ]
        lines += [row.cells() for row in rows if row.target == target]
    lines += ["", "## Who is who", "", *(f"- `{name}`: {entry.what}" for name, entry in CONTENDERS.items())]
    failed = [(run, outcome.error) for run, outcome in outcomes.items() if outcome.error]
    if failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {run.contender}, {run.speedup:g}x, seed {run.seed}: {error}" for run, error in failed]
    return lines


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


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against latency: a line per contender, a point per target."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    for index, name in enumerate([DENSE, *CONTENDERS]):
        mine = [row for row in rows if row.name == name]
        if not mine:
            continue
        latencies = [statistics.mean(row.latencies_us) for row in mine]
        axes.errorbar(
            latencies,
            [row.mean for row in mine],
            yerr=[row.deviation / len(row.outcomes) ** 0.5 for row in mine],
            label=name,
            marker="o" if name.startswith("hwprune") else ("*" if name == DENSE else "x"),
            linestyle="-" if name.startswith("hwprune") else ":",
            color=f"C{index % 10}",
            capsize=2,
        )
    axes.set(xlabel="measured latency, us (undisturbed)", ylabel="accuracy, % (bars: standard error)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
