"""Kills ``hwprune prune`` with SIGKILL at chosen and at random moments, resumes it, and compares the weights.

    python tools/kill_resume.py --kills 50

Four kinds of moments take turns: any time, while a file is being written, in surgery, and in export and
timing. After every kill whatever stands under its own name must be whole; a run that ends must have exactly
the weights of a run that nobody killed, and leave no temporary file.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import onnx

from hwprune.files import TEMPORARY_FILES
from hwprune.output_folder import CHECKPOINTS, MARKER, MODEL_FILE, REPORT_FILE, SLIM_FOLDER
from hwprune.surgery.structure import WEIGHTS_FILE
from hwprune.train.checkpoint import load_checkpoint

#: A target in groups: a latency is settled by measuring, which no two runs do alike.
OPTIONS = ("--model", "lenet5", "--keep", "0.5", "--epochs", "3", "--batch-size", "128")
POLL_SECONDS = 0.0005


@dataclass(frozen=True)
class Run:
    """A started command.

    Attributes:
        process: The process.
        folder: Its output folder.
        log: What it prints.
        started: When, in seconds of the monotonic clock.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    log: Path
    started: float

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def says(self, words: str) -> bool:
        """Whether the words were printed."""
        return words in self.log.read_text(errors="replace")


def start(folder: Path, log: Path) -> Run:
    """Starts the command, or goes on with it where there is something to go on with."""
    resume = ["--resume"] if (folder / MARKER).is_file() else []
    command = [sys.executable, "-m", "hwprune", "prune", "--out", str(folder), *OPTIONS, *resume]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    return Run(process, folder, log, time.monotonic())


def moments(whole_seconds: float, draw: random.Random) -> dict[str, Callable[[Run], bool]]:
    """Name to a condition at which to kill; each is drawn anew."""
    at, later = draw.uniform(0, whole_seconds), draw.uniform(0, 0.3)
    reached: list[float] = []

    def after(run: Run, words: str) -> bool:
        if not reached and run.says(words):
            reached.append(run.seconds)
        return bool(reached) and run.seconds >= reached[0] + later

    return {
        "any time": lambda run: run.seconds >= at,
        "writing": lambda run: run.seconds > at / 2 and any(run.folder.rglob(TEMPORARY_FILES)),
        "surgery": lambda run: after(run, "rebuilding the slim network"),
        "export and timing": lambda run: after(run, "timing dense and slim"),
    }


def kill_at(run: Run, due: Callable[[Run], bool]) -> bool:
    """Kills the command when it is due; says whether it was still running."""
    while run.process.poll() is None:
        if due(run):
            run.process.send_signal(signal.SIGKILL)
            return run.process.wait() == -signal.SIGKILL
        time.sleep(POLL_SECONDS)
    return False


def check_whole(folder: Path) -> None:
    """Reads every file that stands under its own name; raises where one is not whole."""
    for path in folder.glob(f"{CHECKPOINTS}/*.safetensors"):
        if not path.name.startswith("."):
            load_checkpoint(path)
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    if (folder / MODEL_FILE).is_file():
        onnx.checker.check_model(onnx.load(folder / MODEL_FILE))


def finished(folder: Path) -> bool:
    """Whether the run has written all, its checkpoints removed."""
    return (folder / REPORT_FILE).is_file() and not (folder / CHECKPOINTS).exists()


def weights_of(run: Run) -> str:
    """Hash of the weights of a run that has ended; raises where it failed or left something lying about."""
    if run.process.returncode != 0 and not finished(run.folder):
        raise click.ClickException(f"the run failed:\n{run.log.read_text(errors='replace')}")
    left = [str(path) for path in run.folder.rglob(TEMPORARY_FILES)]
    if left:
        raise click.ClickException(f"temporary files are left: {', '.join(left)}")
    check_whole(run.folder)
    return hashlib.sha256((run.folder / SLIM_FOLDER / WEIGHTS_FILE).read_bytes()).hexdigest()


@click.command(help=__doc__)
@click.option("--kills", default=50, show_default=True, help="How many in all.")
@click.option("--per-run", default=5, show_default=True, help="Kills before a run is left to end.")
@click.option("--seed", default=0, show_default=True)
def main(kills: int, per_run: int, seed: int) -> None:
    draw = random.Random(seed)
    root = Path(tempfile.mkdtemp(prefix="kill-resume-"))
    run = start(root / "whole", root / "log")
    run.process.wait()
    whole_seconds, expected = run.seconds, weights_of(run)
    click.echo(f"uninterrupted: {whole_seconds:.1f} s, weights {expected[:16]}")
    counts: Counter[str] = Counter()
    runs = 0
    while counts.total() < kills:
        folder, killed = root / f"run{runs}", 0
        run = start(folder, root / "log")
        while killed < per_run and counts.total() < kills:
            kind, due = list(moments(whole_seconds, draw).items())[counts.total() % 4]
            if not kill_at(run, due):
                break
            counts[kind] += 1
            killed += 1
            check_whole(folder)
            if finished(folder):
                break  # killed after its last step: there is nothing to resume
            run = start(folder, root / "log")
        run.process.wait()
        actual = weights_of(run)
        if actual != expected:
            raise click.ClickException(f"after {killed} kills: weights {actual}, expected {expected}")
        runs += 1
        click.echo(f"run {runs}: {killed} kills, {counts.total()} in all, the same weights")
        shutil.rmtree(folder)
    shutil.rmtree(root)
    click.echo("killed " + ", ".join(f"{count} x {kind}" for kind, count in counts.items()))


if __name__ == "__main__":
    main()
