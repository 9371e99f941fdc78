"""Several targets from one training, against two ways to train for each target by itself.

    python tools/compare_budgets.py --out docs/budgets.md

For every seed two sides are made of the same targets, and with ``--scratch`` a third:

- one run: the command with all targets, where each network but the loosest starts from the one at the looser
  target, for a fifth of the epochs;
- own runs: each target by itself, from the same dense weights for as many epochs again, as a command with one
  target does it;
- from scratch: all targets with ``--from-scratch``, where each is pruned from random weights.

The dense training counts once on every side; runs that are complete are not repeated.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pandas as pd
from bench_pages import machine_line, write_page
from compared_commands import options, targets, words
from safetensors.torch import save_file

from hwprune.files import replacing
from hwprune.output_folder import CHECKPOINTS, HISTORY_FILE, REPORT_FILE
from hwprune.report import read_json
from hwprune.train.checkpoint import load_checkpoint
from hwprune.variant_tasks import SHARED_FOLDER
from hwprune.variants_page import MANIFEST_FILE

#: Names of the sides.
ONE, OWN, SCRATCH = "one run", "own runs", "from scratch"

#: Sides that are one command with all targets, to the options that make them.
GRIDS: Mapping[str, Sequence[str]] = {ONE: (), SCRATCH: ("--from-scratch",)}

#: What the page says of the side that is made on request.
SCRATCH_LINES = (
    "From scratch: the one run's command with `--from-scratch`, each network pruned from random",
    "weights for all the epochs.",
)

#: What is wanted: cost of the one run against one target, and points lost against a run of its own.
COST, LOSS = 1.3, 0.3

#: Exit code of the command where a network failed or misses its target.
MISSED = 1


@dataclass(frozen=True, slots=True)
class Side:
    """The networks of one side with one seed.

    Attributes:
        accuracies: By target, in percent.
        speedups: Measured, by target.
        missed: Targets that were not met.
        dense_seconds: Of the dense training's epochs.
        seconds: Of each pruning's epochs, by target.
        wall_seconds: Of each network from its start to its report, by target, without the dense training.
    """

    accuracies: dict[float, float]
    speedups: dict[float, float]
    missed: frozenset[float]
    dense_seconds: float
    seconds: dict[float, float]
    wall_seconds: dict[float, float]

    @property
    def whole(self) -> tuple[float, float]:
        """Seconds of all targets and one dense training: of the epochs, and of the clock."""
        return self._with_dense(sum)

    @property
    def single(self) -> tuple[float, float]:
        """Seconds of one target (the mean) and one dense training: of the epochs, and of the clock."""
        return self._with_dense(statistics.mean)

    def _with_dense(self, reduce: Any) -> tuple[float, float]:
        return (
            self.dense_seconds + reduce(self.seconds.values()),
            self.dense_seconds + reduce(self.wall_seconds.values()),
        )


def folders_of(grid: Path) -> dict[float, Path]:
    """Target to folder of the networks that one command has made."""
    variants = read_json(grid / MANIFEST_FILE, "hwprune prune")["variants"]
    return {float(variant["target"]["value"]): grid / variant["name"] for variant in variants}


def read_side(folders: Mapping[float, Path], dense_seconds: float | None = None) -> Side:
    """What finished runs came to.

    Args:
        folders: By target.
        dense_seconds: Of the dense training; by default the history says.
    """
    reports = {target: read_json(folder / REPORT_FILE, "hwprune prune") for target, folder in folders.items()}
    histories = {target: pd.read_csv(folder / HISTORY_FILE) for target, folder in folders.items()}
    first = next(iter(histories.values()))
    return Side(
        {target: 100 * report["slim"]["accuracy"] for target, report in reports.items()},
        {target: report["speedup"] for target, report in reports.items()},
        frozenset(target for target, report in reports.items() if not report["target_met"]),
        _seconds(first, dense=True) if dense_seconds is None else dense_seconds,
        {target: _seconds(history, dense=False) for target, history in histories.items()},
        {target: float(report["seconds"]) for target, report in reports.items()},
    )


def _seconds(history: pd.DataFrame, *, dense: bool) -> float:
    """Of the epochs of the dense network, or of those of the pruned one, corrections included."""
    return float(history.loc[(history["phase"] == "dense") == dense, "seconds"].sum())


def lines_of(seeds: Sequence[Mapping[str, Side]]) -> list[str]:
    """The table over all seeds, what was missed, and what it cost."""
    names = [name for name in (ONE, OWN, SCRATCH) if name in seeds[0]]
    titles = [f"{name}: accuracy (sd), measured" for name in names]
    titles += [f"{ONE} - {other}, points (sd)" for other in names[1:]]
    lines = [f"| speed-up | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for target in seeds[0][ONE].accuracies:
        cells = [_scores([seed[name] for seed in seeds], target) for name in names]
        gaps = [_shown(_gaps(seeds, other, target)) for other in names[1:]]
        lines.append(f"| {target:g} | {' | '.join([*cells, *gaps])} |")
    made = len(seeds) * len(seeds[0][ONE].accuracies)
    missed = [f"{sum(len(seed[name].missed) for seed in seeds)} of {made} ({name})" for name in names]
    return [
        *lines,
        "",
        f"Networks that miss their target: {', '.join(missed)}.",
        "",
        *_verdicts(seeds),
        "",
        *_costs(seeds),
    ]


def _verdicts(seeds: Sequence[Mapping[str, Side]]) -> list[str]:
    """Whether the one run loses and costs no more than is wanted, against runs of their own."""
    lost = {
        target: -statistics.mean(_gaps(seeds, OWN, target)) for target in sorted(seeds[0][ONE].accuracies)
    }
    beyond = [f"{points:.2f} at {target:g}" for target, points in lost.items() if round(points, 6) > LOSS]
    costs = [statistics.mean(ratios) for ratios in _ratios(seeds, OWN, "single")]
    return [
        f"Wanted: at most {LOSS:g} points lost against own runs at each target: "
        + (f"missed ({', '.join(beyond)})." if beyond else "met."),
        f"Wanted: at most {COST:g} times one run of its own: "
        + ("met" if max(costs) <= COST else "missed")
        + f" ({costs[0]:.2f} in epochs' seconds, {costs[1]:.2f} in wall seconds).",
    ]


def _scores(sides: Sequence[Side], target: float) -> str:
    scores = [side.accuracies[target] for side in sides]
    reached = statistics.mean(side.speedups[target] for side in sides)
    return f"{statistics.mean(scores):.2f} ({_deviation(scores)}), {reached:.2f}"


def _gaps(seeds: Sequence[Mapping[str, Side]], other: str, target: float) -> list[float]:
    """Points by which the one run is ahead, by seed."""
    return [seed[ONE].accuracies[target] - seed[other].accuracies[target] for seed in seeds]


def _shown(gaps: Sequence[float]) -> str:
    return f"{statistics.mean(gaps):+.2f} ({_deviation(gaps)})"


def _ratios(seeds: Sequence[Mapping[str, Side]], name: str, extent: str) -> list[tuple[float, ...]]:
    """What the one run costs against a side, by seed: first the epochs' seconds, then those of the clock."""
    ratios = [
        [mine / other for mine, other in zip(seed[ONE].whole, getattr(seed[name], extent), strict=True)]
        for seed in seeds
    ]
    return list(zip(*ratios, strict=True))


def _costs(seeds: Sequence[Mapping[str, Side]]) -> list[str]:
    """All targets of the one run, as multiples of each other thing that one could do instead."""
    rows = {
        "one target, `hwprune prune --speedup X`: dense, and pruned from it for as many epochs": (
            OWN,
            "single",
        ),
        "one target with `--from-scratch`: dense, and pruned from random weights": (SCRATCH, "single"),
        "all targets, each a run of its own, the dense training once": (OWN, "whole"),
        "all targets with `--from-scratch`, the dense training once": (SCRATCH, "whole"),
    }
    lines = [
        "What the one run costs with all its targets and its dense training, as a multiple of:",
        "",
        "| | epochs' seconds (range) | wall seconds (range) |",
        "|---|---|---|",
    ]
    for title, (name, extent) in rows.items():
        if name not in seeds[0]:
            continue
        cells = [
            f"{statistics.mean(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in _ratios(seeds, name, extent)
        ]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "One target is the mean over the targets. Wall seconds are those of `report.json` (calibration,",
        "turns of the closed loop, fit, export and timing included) and the epochs of the dense training.",
        "Rows and calibrations are kept on the machine: what is made later finds them there.",
    ]


def _deviation(values: Sequence[float]) -> str:
    return f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"


def written_ns(folder: Path) -> int:
    """When the manifest was written, in nanoseconds; 0 where there is none."""
    manifest = folder / MANIFEST_FILE
    return manifest.stat().st_mtime_ns if manifest.is_file() else 0


def complete(folder: Path, targets: int) -> bool:
    """Whether a network was made for every target, which it meets or misses."""
    variants = read_json(folder / MANIFEST_FILE, "hwprune prune")["variants"]
    return len(variants) == targets and all(variant["status"] in ("done", "missed") for variant in variants)


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


def run_alone(folder: Path, options: Sequence[str], chain: Path) -> None:
    """Prunes for one target from the dense weights of a run with all of them, as a command of its own does.

    Args:
        folder: Where it goes; left alone where it is complete.
        options: Of the command, with one target.
        chain: The run with all targets, complete.

    Raises:
        ClickException: If it fails.
    """
    if (folder / REPORT_FILE).is_file() and not (folder / CHECKPOINTS).exists():
        return
    command = [sys.executable, "-m", "hwprune", "prune", *options]
    command += ["--weights", str(dense_weights(chain)), "--out", str(folder)]
    if folder.exists():
        command.append("--resume")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if subprocess.run(command, check=False).returncode:
        raise click.ClickException(f"{shlex.join(command)} failed")


def dense_weights(chain: Path) -> Path:
    """File of the weights of the dense training that the networks of a run share; written beside the run."""
    path = chain.with_name(f"{chain.name}-dense.safetensors")
    if not path.is_file():
        (training,) = (chain / SHARED_FOLDER).glob("dense-*.safetensors")
        weights = load_checkpoint(training)["trainer"]["model"]
        with replacing(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary)
    return path


def sides_of(
    work: Path, seed: int, command: Sequence[str], speedups: Sequence[float], *, scratch: bool
) -> dict[str, Side]:
    """Makes what is missing of one seed and reads all of it."""
    seeded = [*command, "--seed", str(seed)]
    sides = {}
    for name, extra in GRIDS.items():
        if name == SCRATCH and not scratch:
            continue
        folder = work / f"{seed}-{name.replace(' ', '-')}"
        run(folder, [*seeded, *targets(speedups), *extra])
        sides[name] = read_side(folders_of(folder))
    chain = work / f"{seed}-{ONE.replace(' ', '-')}"
    alone = {
        target: work / f"{seed}-{OWN.replace(' ', '-')}" / f"{target:g}" for target in sides[ONE].accuracies
    }
    for target, folder in alone.items():
        run_alone(folder, [*seeded, *targets([target])], chain)
    return {**sides, OWN: read_side(alone, sides[ONE].dense_seconds)}


@click.command()
@options(work="budgets-work", device="x86-avx2-ort", images=10000, speedups=(1.5, 2.0, 3.0))
@click.option("--scratch", is_flag=True, help="Prune from random weights too.")
def main(
    out: Path | None, work: Path, seeds: int, speedups: tuple[float, ...], scratch: bool, **asked: Any
) -> None:
    """Runs what is missing and writes the page."""
    command = words(asked)
    seeds_sides = [sides_of(work, seed, command, speedups, scratch=scratch) for seed in range(seeds)]
    shown = shlex.join([*command, *targets(speedups)])
    write_page(
        [
            "# Several targets from one training",
            "",
            f"Written by `tools/compare_budgets.py`, {seeds} seeds. One run: `hwprune prune",
            f"{shown}`: the loosest target from the dense network for as many epochs again, each further one",
            "from the network at the looser target for a fifth of them.",
            "Own runs: `hwprune prune --weights` with one target and the dense weights of the one run, for",
            "all the epochs, as `hwprune prune` with one target does it.",
            *(SCRATCH_LINES if scratch else ()),
            "Accuracies in percent, mean and standard deviation.",
            "",
            machine_line(),
            "",
            *lines_of(seeds_sides),
        ],
        out,
    )


if __name__ == "__main__":
    main()
