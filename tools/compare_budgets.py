"""Several targets from one training, against a training of its own for each.

    python tools/compare_budgets.py --out docs/budgets.md

For every seed the same command runs twice: as it is, where each network starts from the one at the looser
target, and with ``--from-scratch``, where each is pruned from random weights. The dense training counts once
on either side. Runs that are complete are not repeated.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import pandas as pd
from bench_pages import machine_line, write_page

from hwprune.report import read_json
from hwprune.variants_page import MANIFEST_FILE

#: Name of a side to the options that make it.
SIDES = {"one run": (), "own runs": ("--from-scratch",)}

#: Exit code of the command where a network failed or misses its target.
MISSED = 1


@dataclass(frozen=True, slots=True)
class Side:
    """One run of the command with one seed.

    Attributes:
        accuracies: By target, in percent.
        speedups: Measured, by target.
        dense_seconds: Of the dense training.
        seconds: Of each pruning's epochs, by target.
    """

    accuracies: dict[float, float]
    speedups: dict[float, float]
    dense_seconds: float
    seconds: dict[float, float]


def read_side(folder: Path) -> Side:
    """What a finished run came to."""
    variants = read_json(folder / MANIFEST_FILE, "hwprune prune")["variants"]
    by_target = {float(variant["target"]["value"]): variant for variant in variants}
    histories = {
        target: pd.read_csv(folder / variant["name"] / "history.csv") for target, variant in by_target.items()
    }
    first = next(iter(histories.values()))
    return Side(
        {target: 100 * variant["slim"]["accuracy"] for target, variant in by_target.items()},
        {target: variant["speedup"] for target, variant in by_target.items()},
        float(first.loc[first["phase"] == "dense", "seconds"].sum()),
        {
            target: float(history.loc[history["phase"] == "prune", "seconds"].sum())
            for target, history in histories.items()
        },
    )


def lines_of(sides: Sequence[dict[str, Side]]) -> list[str]:
    """The table over all seeds, and what it cost."""
    lines = [
        "| speed-up asked for | one run: accuracy (sd), measured | own runs: accuracy (sd), measured "
        "| difference, points (sd) |",
        "|---|---|---|---|",
    ]
    for target in sides[0]["one run"].accuracies:
        cells = []
        for name in SIDES:
            scores = [seed[name].accuracies[target] for seed in sides]
            reached = statistics.mean(seed[name].speedups[target] for seed in sides)
            cells.append(f"{statistics.mean(scores):.2f} ({_deviation(scores)}), {reached:.2f}")
        gaps = [seed["one run"].accuracies[target] - seed["own runs"].accuracies[target] for seed in sides]
        lines.append(
            f"| {target:g} | {' | '.join(cells)} | {statistics.mean(gaps):+.2f} ({_deviation(gaps)}) |"
        )
    costs = [_cost(seed["one run"], seed["own runs"]) for seed in sides]
    return [
        *lines,
        "",
        f"All targets in one run take {statistics.mean(costs):.2f} times the epochs' seconds of a run of its",
        f"own with one target ({min(costs):.2f} to {max(costs):.2f}); both include the dense training.",
    ]


def _cost(together: Side, alone: Side) -> float:
    own = statistics.mean(alone.seconds.values())
    return (together.dense_seconds + sum(together.seconds.values())) / (alone.dense_seconds + own)


def _deviation(values: Sequence[float]) -> str:
    return f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"


def written_ns(folder: Path) -> int:
    """When the manifest was written, in nanoseconds; 0 where there is none."""
    manifest = folder / MANIFEST_FILE
    return manifest.stat().st_mtime_ns if manifest.is_file() else 0


def complete(folder: Path, targets: int) -> bool:
    """Whether a network was made for every target, which it meets or misses."""
    variants = read_json(folder / MANIFEST_FILE, "hwprune prune")["variants"]
    return len(variants) == targets and all(variant["status"] != "failed" for variant in variants)


def run(folder: Path, options: Sequence[str]) -> None:
    """Runs ``hwprune prune`` into a folder, or goes on with it; a network may miss its target.

    Raises:
        ClickException: If it fails.
    """
    command = [sys.executable, "-m", "hwprune", "prune", *options, "--out", str(folder)]
    if folder.exists():
        command.append("--resume")
    folder.parent.mkdir(parents=True, exist_ok=True)
    before = written_ns(folder)
    code = subprocess.run(command, check=False).returncode
    # A command that refuses the folder leaves the manifest as it was.
    missed = code == MISSED and written_ns(folder) > before
    if code and not (missed and complete(folder, options.count("--speedup"))):
        raise click.ClickException(f"{shlex.join(command)} failed")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Where the page goes; shown by default.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("budgets-work"), show_default=True)
@click.option("--model", default="resnet20", show_default=True)
@click.option("--data", default="fashion-mnist", show_default=True)
@click.option("--device", default="x86-avx2-ort", show_default=True)
@click.option("--images", default=10000, show_default=True, help="Training images.")
@click.option("--epochs", default=5, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--speedup", "speedups", type=float, multiple=True, default=(1.5, 2.0, 3.0), show_default=True)
def main(
    out: Path | None, work: Path, model: str, data: str, device: str, images: int, epochs: int,
    batch_size: int, seeds: int, speedups: tuple[float, ...],
) -> None:  # fmt: skip
    """Runs what is missing and writes the page."""
    options = ["--model", model, "--data", data, "--device", device, "--epochs", str(epochs)]
    options += ["--train-images", str(images), "--batch-size", str(batch_size)]
    for speedup in speedups:
        options += ["--speedup", f"{speedup:g}"]
    sides = []
    for seed in range(seeds):
        for name, extra in SIDES.items():
            run(work / f"{seed}-{name.replace(' ', '-')}", [*options, "--seed", str(seed), *extra])
        sides.append({name: read_side(work / f"{seed}-{name.replace(' ', '-')}") for name in SIDES})
    write_page(
        [
            "# Several targets from one training",
            "",
            f"Written by `tools/compare_budgets.py`: `hwprune prune {shlex.join(options)}`, {seeds} seeds,",
            "as it is and with `--from-scratch`. Accuracies in percent, mean and standard deviation.",
            "",
            machine_line(),
            "",
            *lines_of(sides),
        ],
        out,
    )


if __name__ == "__main__":
    main()
