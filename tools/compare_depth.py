"""Channels alone against channels and whole branches: accuracy at the same targets, measured.

    python tools/compare_depth.py --out docs/depth.md

For every seed two commands with the same targets are run, which differ in ``--granularity`` alone; those that
are complete are not repeated.
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
from bench_pages import machine_line, write_page
from compared_commands import options, targets, words

from hwprune.output_folder import REPORT_FILE
from hwprune.report import read_json
from hwprune.variants_page import MANIFEST_FILE

#: Granularities that are compared.
SIDES = ("channel", "channel+branch")
#: Exit code of the command where a network failed, misses its target, or cannot reach it.
MISSED = 1


@dataclass(frozen=True, slots=True)
class Network:
    """One network, as it was measured.

    Attributes:
        accuracy: In percent.
        dense: Accuracy of the dense network it comes from, in percent.
        speedup: Measured.
        met: Whether that is what was asked for.
        branches: How many of its branches are gone; 0 where only channels may leave.
        seconds: From its start to its report, without the dense training.
    """

    accuracy: float
    dense: float
    speedup: float
    met: bool
    branches: int
    seconds: float

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Network:
        """What ``report.json`` says."""
        branches = [layer for layer in report["layers"] if layer["unit"] == "branches"]
        return cls(
            100 * report["slim"]["accuracy"],
            100 * report["dense"]["accuracy"],
            float(report["speedup"]),
            bool(report["target_met"]),
            sum(not layer["width_after"] for layer in branches),
            float(report["seconds"]),
        )


#: By target; ``None`` where the device cannot reach it.
Side = dict[float, Network | None]


def read_side(grid: Path) -> Side:
    """The networks that one command has made.

    Args:
        grid: Its folder.
    """
    variants = read_json(grid / MANIFEST_FILE, "hwprune prune")["variants"]
    return {
        float(variant["target"]["value"]): None
        if variant["status"] == "unreachable"
        else Network.of(read_json(grid / variant["name"] / REPORT_FILE, "hwprune prune"))
        for variant in variants
    }


def made(folder: Path, targets: int) -> bool:
    """Whether every network of a folder was made, or is out of reach."""
    if not (folder / MANIFEST_FILE).is_file():
        return False
    variants = read_json(folder / MANIFEST_FILE, "hwprune prune")["variants"]
    statuses = [variant["status"] for variant in variants]
    return len(statuses) == targets and set(statuses) <= {"done", "missed", "unreachable"}


def run(folder: Path, options: Sequence[str]) -> None:
    """Runs ``hwprune prune`` into a folder, or goes on with it.

    Raises:
        ClickException: If a network fails.
    """
    targets = options.count("--speedup")
    if made(folder, targets):
        return
    command = [sys.executable, "-m", "hwprune", "prune", *options, "--out", str(folder)]
    if folder.exists():
        command.append("--resume")
    folder.parent.mkdir(parents=True, exist_ok=True)
    code = subprocess.run(command, check=False).returncode
    if code not in (0, MISSED) or not made(folder, targets):
        raise click.ClickException(f"{shlex.join(command)} failed")


def lines_of(seeds: Sequence[Mapping[str, Side]]) -> list[str]:
    """The table over all seeds.

    Args:
        seeds: Per seed, name of the granularity to its networks.
    """
    titles = " | ".join(f"{name}: accuracy (sd), measured, branches gone, met" for name in SIDES)
    lines = [f"| speed-up | {titles} | with branches - without, points (sd) |", "|---" * 4 + "|"]
    for target in seeds[0][SIDES[0]]:
        cells = [_cell([seed[name][target] for seed in seeds]) for name in SIDES]
        pairs = [(seed[SIDES[1]][target], seed[SIDES[0]][target]) for seed in seeds]
        gaps = [ours.accuracy - other.accuracy for ours, other in pairs if ours and other]
        lines.append(f"| {target:g} | {' | '.join([*cells, _mean_of(gaps, '+.2f')])} |")
    dense = [network.dense for seed in seeds for network in seed[SIDES[0]].values() if network]
    seconds = {
        name: [network.seconds for seed in seeds for network in seed[name].values() if network]
        for name in SIDES
    }
    took = ", ".join(f"{statistics.mean(each):.0f} ({name})" for name, each in seconds.items() if each)
    return [
        *lines,
        "",
        f"Dense: {_mean_of(dense, '.2f')}. Seconds of a network without the dense training: {took}.",
    ]


def _cell(networks: Sequence[Network | None]) -> str:
    there = [network for network in networks if network is not None]
    if not there:
        return "out of reach"
    reached = statistics.mean(network.speedup for network in there)
    branches = ", ".join(str(network.branches) for network in there)
    met = f"{sum(network.met for network in there)} of {len(networks)}"
    return f"{_mean_of([each.accuracy for each in there], '.2f')}, {reached:.2f}, {branches}, {met}"


def _mean_of(values: Sequence[float], form: str) -> str:
    """Mean and, of several, sample standard deviation."""
    if not values:
        return "-"
    deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
    return f"{statistics.mean(values):{form}} ({deviation})"


@click.command()
@options(work="depth-work", device="x86-avx512-ort", images=6000, speedups=(2.0, 3.0, 4.0))
def main(out: Path | None, work: Path, seeds: int, speedups: tuple[float, ...], **asked: Any) -> None:
    """Runs what is missing and writes the page."""
    command = [*words(asked), *targets(speedups)]
    found = []
    for seed in range(seeds):
        for name in SIDES:
            run(work / f"{seed}-{name}", [*command, "--seed", str(seed), "--granularity", name])
        found.append({name: read_side(work / f"{seed}-{name}") for name in SIDES})
    write_page(
        [
            "# Channels alone, and channels with branches",
            "",
            f"Written by `tools/compare_depth.py`, {seeds} seeds: `hwprune prune",
            f"{shlex.join(command)}`",
            "with `--granularity channel` and with `--granularity channel+branch`, each network fine-tuned",
            "from the one at the looser target. Accuracies in percent, mean and standard deviation;",
            "speed-ups are measured.",
            "",
            machine_line(),
            "",
            *lines_of(found),
        ],
        out,
    )


if __name__ == "__main__":
    main()
