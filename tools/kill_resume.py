"""Kills ``hwprune prune`` with SIGKILL at chosen and at random moments, resumes it, and compares the weights.

    python tools/kill_resume.py --kills 50

Kinds of moments take turns: any time, while it trains, while a checkpoint or any other file is being
written, in surgery, while the networks are exported, while they are timed, and while the results are
written. After every kill whatever stands under its own name must be whole; a run that ends must have exactly
the weights of a run that nobody killed, and leave no temporary file.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import click
import onnx
import pandas as pd
from bench_pages import machine_line, write_page

import hwprune
from hwprune.files import TEMPORARY_FILES
from hwprune.output_folder import (
    CHECKPOINTS,
    HISTORY_FILE,
    MARKER,
    MODEL_FILE,
    PAGE_FILE,
    REPORT_FILE,
    SLIM_FOLDER,
    STAGING,
)
from hwprune.surgery.structure import STRUCTURE_FILE, WEIGHTS_FILE
from hwprune.train.checkpoint import load_checkpoint
from hwprune.workloads import make_model

#: A target in groups: a latency is settled by measuring, which no two runs do alike.
COMMON = ("--keep", "0.5", "--epochs", "3", "--batch-size", "128")
#: Name of a network to the options of its run; one has batch norm, and starts from a dense training.
SETUPS = {"lenet5": ("--from-scratch",), "resnet8": ("--fine-tune-epochs", "2")}
PHASES = {"dense", "prune"}
POLL_SECONDS = 0.0005


@dataclass(frozen=True)
class Run:
    """A started command.

    Attributes:
        process: The process.
        folder: Its output folder.
        log: What it prints.
        started: When, in seconds of the monotonic clock.
        started_ns: When, in nanoseconds of the clock of the files.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path
    started: float
    started_ns: int

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def says(self, words: str) -> bool:
        """Whether the words were printed."""
        return words in self.log.read_text(errors="replace")

    def training(self) -> bool:
        """Whether an epoch of this session is under way."""
        begun = re.findall(TRAINING, self.log.read_text(errors="replace"))
        return any(batches != done for batches, done in begun) and not self.says(SURGERY)

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return self.writing(self.folder / CHECKPOINTS)

    def writing(self, folder: Path) -> bool:
        """Whether a file anywhere in the folder is on its way, but for those that a killed session left."""
        return any(map(self._is_new, folder.rglob(TEMPORARY_FILES)))

    def _is_new(self, path: Path) -> bool:
        try:
            return path.stat().st_mtime_ns >= self.started_ns
        except FileNotFoundError:  # it has arrived since
            return False

    def stage(self) -> str:
        """Where the command has come to, by what it has printed and left."""
        if self.saving():
            return "writing a checkpoint"
        if not self.says(SURGERY):
            return "training" if self.training() else "before its training"
        return "timing, writing results" if self.says(TIMING) else "in surgery and export"

    def exporting(self) -> bool:
        """Whether a network is being exported for the report, or has been."""
        if not self.says(SURGERY):
            return False  # an earlier session may have left models on their way
        staged = [*(self.folder / STAGING).glob(".*.onnx.*.tmp"), *(self.folder / STAGING).glob("*.onnx")]
        return bool(staged) and not self.says(TIMING)

    def writing_results(self) -> bool:
        """Whether the first result is being put in place, or just was."""
        if not self.says(TIMING):
            return False  # nothing of this session: an earlier one may have left results
        model = self.folder / MODEL_FILE
        new = model.is_file() and model.stat().st_mtime_ns >= self.started_ns
        return new or any(self.folder.glob(f".{MODEL_FILE}.*.tmp"))


#: What the command prints before each phase of its training: all batches, and those that are done.
TRAINING = r"training \w+: (\d+) batches(?:, (\d+) of them done)?"
#: What it prints before the surgery, and after both networks are exported.
SURGERY, TIMING = "rebuilding the slim network", "timing dense and slim"


def options_of(network: str) -> list[str]:
    """Of the command."""
    return ["--model", network, *COMMON, *SETUPS[network]]


def start(root: Path, name: str, network: str) -> Run:
    """Starts the command, or goes on with it where there is something to go on with."""
    folder, log, temporary = root / name, root / "log", root / "temporary"
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed process could not remove
    temporary.mkdir()
    resume = ["--resume"] if (folder / MARKER).is_file() else []
    command = [sys.executable, "-m", "hwprune", "prune", "--out", str(folder), *options_of(network), *resume]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)}
    now = time.time_ns()
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    return Run(process, folder, log, time.monotonic(), now)


def moments(whole_seconds: float, draw: random.Random) -> dict[str, Callable[[Run], bool]]:
    """Name to a condition at which to kill; each is drawn anew."""
    at, soon, later = draw.uniform(0, whole_seconds), draw.uniform(0, 0.05), draw.uniform(0, 0.3)
    reached: list[float] = []

    def after(run: Run, seconds: float, holds: bool) -> bool:
        if not reached and holds:
            reached.append(run.seconds)
        return bool(reached) and run.seconds >= reached[0] + seconds

    return {
        "any time": lambda run: run.seconds >= at,
        "training": lambda run: after(run, 5 * later, run.training()),
        "checkpoint": lambda run: run.seconds > at / 2 and run.saving(),
        "writing": lambda run: run.seconds > at / 2 and run.writing(run.folder),
        "surgery": lambda run: after(run, later, run.says(SURGERY)),
        "export": lambda run: after(run, later, run.exporting()),
        "timing": lambda run: after(run, later, run.says(TIMING)),
        "results": lambda run: after(run, soon, run.writing_results()),
    }


def kill_at(run: Run, due: Callable[[Run], bool]) -> str | None:
    """Kills the command when it is due; the stage it was in, ``None`` where it was not running any more."""
    while run.process.poll() is None:
        if due(run):
            run.process.send_signal(signal.SIGKILL)
            return run.stage() if run.process.wait() == -signal.SIGKILL else None
        time.sleep(POLL_SECONDS)
    return None


def check_whole(folder: Path, network: str) -> None:
    """Reads every file that stands under its own name; raises where one is not whole."""
    for path in folder.glob(f"{CHECKPOINTS}/*.safetensors"):
        if not path.name.startswith("."):
            load_checkpoint(path)
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    if (folder / MODEL_FILE).is_file():
        onnx.checker.check_model(onnx.load(folder / MODEL_FILE))
    if (folder / SLIM_FOLDER / STRUCTURE_FILE).is_file():  # written after the weights, whose hash it has
        model = make_model(network, in_channels=1, image_size=8, classes=10, seed=0)
        hwprune.load(folder / SLIM_FOLDER, model=model)
    if (folder / HISTORY_FILE).is_file() and set(pd.read_csv(folder / HISTORY_FILE)["phase"]) != PHASES:
        raise click.ClickException(f"{folder / HISTORY_FILE} is not whole")
    page = folder / PAGE_FILE
    if page.is_file() and not page.read_text(encoding="utf-8").endswith("</html>\n"):
        raise click.ClickException(f"{page} is not whole")


def finished(folder: Path) -> bool:
    """Whether the run has written all, its checkpoints removed."""
    return (folder / REPORT_FILE).is_file() and not (folder / CHECKPOINTS).exists()


def weights_of(run: Run, network: str) -> str:
    """Hash of the weights of a run that has ended; raises where it failed or left something lying about."""
    if run.process.returncode != 0 and not finished(run.folder):
        raise click.ClickException(f"the run failed:\n{run.log.read_text(errors='replace')}")
    left = [str(path) for path in (*run.folder.rglob(TEMPORARY_FILES), *run.folder.glob(STAGING))]
    if left:
        raise click.ClickException(f"temporary files are left: {', '.join(left)}")
    check_whole(run.folder, network)
    return hashlib.sha256((run.folder / SLIM_FOLDER / WEIGHTS_FILE).read_bytes()).hexdigest()


def killed_run(
    root: Path, name: str, network: str, dues: Iterable[tuple[str, Callable[[Run], bool]]]
) -> tuple[Run, list[tuple[str, str]]]:
    """Kills a run at each of the moments, until it ends; the moments, and the stages it was killed in."""
    killed: list[tuple[str, str]] = []
    run = start(root, name, network)
    for kind, due in dues:
        stage = kill_at(run, due)
        if stage is None:
            break
        killed.append((kind, stage))
        check_whole(run.folder, network)
        if finished(run.folder):
            break  # killed after its last step: there is nothing to resume
        run = start(root, name, network)
    run.process.wait()
    return run, killed


@click.command(help=__doc__)
@click.option("--kills", default=50, show_default=True, help="How many in all.")
@click.option("--per-run", default=5, show_default=True, help="Kills before a run is left to end.")
@click.option(
    "--network",
    "networks",
    type=click.Choice(sorted(SETUPS)),
    multiple=True,
    default=sorted(SETUPS),
    show_default=True,
    help="One or several.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where the page goes; shown by default.")
def main(kills: int, per_run: int, networks: Sequence[str], seed: int, out: Path | None) -> None:
    lines = []
    for network in networks:
        killed, runs = kill_runs(network, kills, per_run, random.Random(seed))
        lines += section_of(network, killed, runs)
    write_page([*INTRODUCTION, machine_line(), *lines], out)


def kill_runs(
    network: str, kills: int, per_run: int, draw: random.Random
) -> tuple[list[tuple[str, str]], int]:
    """Kills runs so often; every kill's moment and stage, and the number of runs.

    Raises:
        ClickException: If a run fails, leaves something lying about, or ends with other weights.
    """
    root = Path(tempfile.mkdtemp(prefix="kill-resume-"))
    whole = start(root, "whole", network)
    whole.process.wait()
    whole_seconds, expected = whole.seconds, weights_of(whole, network)
    click.echo(f"hwprune prune {shlex.join(options_of(network))}")
    click.echo(f"uninterrupted: {whole_seconds:.1f} s, weights {expected[:16]}")
    all_killed: list[tuple[str, str]] = []
    kinds = cycle(moments(whole_seconds, draw))
    runs = 0
    while len(all_killed) < kills:
        chosen = list(islice(kinds, min(per_run, kills - len(all_killed))))
        dues = ((kind, moments(whole_seconds, draw)[kind]) for kind in chosen)
        run, killed = killed_run(root, f"run{runs}", network, dues)
        all_killed += killed
        actual = weights_of(run, network)
        if actual != expected:
            raise click.ClickException(f"after {len(killed)} kills: weights {actual}, expected {expected}")
        runs += 1
        click.echo(f"run {runs}: {len(killed)} kills, {len(all_killed)} in all, the same weights")
        shutil.rmtree(run.folder)
    shutil.rmtree(root)
    return all_killed, runs


#: What every page begins with; it is written only where every run had the weights expected.
INTRODUCTION = [
    "# Killed and resumed",
    "",
    "Written by `tools/kill_resume.py`: commands were killed with SIGKILL at random moments of chosen kinds,",
    "and each was given again, with `--resume` as soon as there was anything to go on with. After",
    "every kill the checkpoints, JSON files, ONNX file, slim network, history and page that stood there",
    "were whole. Every run ended with the weights, bit for bit, of a run that was not killed, and left",
    "no temporary file.",
    "",
]


def section_of(network: str, killed: Sequence[tuple[str, str]], runs: int) -> list[str]:
    """What was done to the runs of one network."""
    kinds, stages = (Counter(column) for column in zip(*killed, strict=True))
    return [
        "",
        f"## {network}",
        "",
        f"`hwprune prune {shlex.join(options_of(network))}`: killed {len(killed)} times in {runs} runs.",
        "",
        "| moment | times |",
        "|---|---|",
        *(f"| {kind} | {count} |" for kind, count in kinds.items()),
        "",
        "| the command was | times |",
        "|---|---|",
        *(f"| {stage} | {count} |" for stage, count in stages.items()),
    ]


if __name__ == "__main__":
    main()
