"""The picture: accuracy against latency."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from contenders import CONTENDERS
from journal import DENSE
from rows import Row, standard_error


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against latency: a line per contender, a point per target."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    for index, name in enumerate([DENSE, *CONTENDERS]):
        mine = [row for row in rows if row.name == name]
        if not mine:
            continue
        axes.errorbar(
            [row.latency_us for row in mine],
            [statistics.mean(row.accuracies) for row in mine],
            yerr=[standard_error(row.accuracies) or 0.0 for row in mine],
            label=name,
            marker="o" if name.startswith("hwprune") else ("*" if name == DENSE else "x"),
            linestyle="-" if name.startswith("hwprune") else ":",
            color=f"C{index % 10}",
            capsize=2,
        )
    axes.set(xlabel="measured latency, us (undisturbed)", ylabel="accuracy, % (bars: standard error)")
    axes.grid(alpha=0.3)
    if rows:
        axes.legend(fontsize=8, ncols=2)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
