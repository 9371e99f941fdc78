"""Cuts many published networks in half and compares each with its masked form.

    python tools/zoo.py run cut cut.jsonl            a line per network; goes on where it stopped
    python tools/zoo.py run onnx onnx.jsonl          the same, then exported and run in ONNX Runtime
    python tools/zoo.py run peer peer.jsonl          the same networks by torch-pruning
    python tools/zoo.py table cut.jsonl onnx.jsonl peer.jsonl docs/zoo.md

Needs torchvision, timm, pytorchcv and transformers; installed with ``--no-deps`` they do not replace PyTorch.
"""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path

import click
import torch
from zoo_cut import QUESTIONS, Outcome
from zoo_networks import Entry, build, declare_detection_operators, entries
from zoo_page import NOT_ASKED, as_markdown

from hwprune.surgery.outputs import outputs_of

PACKAGES = ("torch", "onnxruntime", "torchvision", "timm", "pytorchcv", "transformers", "torch-pruning")


def _answer(question: str, entry: Entry, answer: Connection) -> None:
    """Runs in a process of its own, so that neither memory nor a crash carries over."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    library = declare_detection_operators()
    try:
        outputs_of(*build(entry))
    except Exception as error:  # a package that is missing, or a name that it no longer has
        answer.send(_unjudged(entry, "not built", f"{type(error).__name__}: {error}"[:120]))
        return
    answer.send(QUESTIONS[question](entry))
    del library


def _unjudged(entry: Entry, verdict: str, reason: str) -> Outcome:
    """A network that there is nothing to say about, and why."""
    return Outcome(entry.family, entry.name, verdict, reasons={reason: 1})


def ask(question: str, entry: Entry, seconds: float) -> Outcome:
    """Puts a question to one network in a process of its own, for at most ``seconds``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo_cut", "zoo_networks"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(question, entry, theirs))
    process.start()
    theirs.close()
    try:
        if ours.poll(seconds):
            outcome: Outcome = ours.recv()
            return outcome
        return _unjudged(entry, "no answer", f"not done within {seconds:.0f} s")
    except EOFError:
        return _unjudged(entry, "no answer", "the process ended without one")
    finally:
        process.kill()
        process.join()


def read(path: Path) -> list[Outcome]:
    """The outcomes in a file of JSON lines; none where there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Outcome(**json.loads(line)) for line in lines]


def in_turn() -> Iterator[Entry]:
    """Every network, families taking turns, so that a run that is stopped has seen all of them."""
    families: dict[str, list[Entry]] = {}
    for entry in entries():
        families.setdefault(entry.family, []).append(entry)
    for position in range(max(map(len, families.values()))):
        for members in families.values():
            yield from members[position : position + 1]


def _revision() -> str:
    """What git calls the state of this repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@click.group()
def main() -> None:
    """Cuts many networks in half and compares each with its masked form."""


@main.command()
@click.argument("question", type=click.Choice(sorted(QUESTIONS)))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--only", default="", help="A family, or a part of a name.")
@click.option("--seconds", default=240.0, show_default=True, help="Time for one network.")
def run(question: str, out: Path, only: str, seconds: float) -> None:
    """Asks every network that OUT has no line of yet; a line of JSON per network."""
    revision = _revision()
    done = {(outcome.family, outcome.name) for outcome in read(out)}
    for entry in in_turn():
        if (entry.family, entry.name) in done or only not in f"{entry.family}/{entry.name}":
            continue
        outcome = replace(
            ask(question, entry, seconds), date=f"{datetime.now(UTC):%Y-%m-%d}", revision=revision
        )
        with out.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        print(f"{entry.family}/{entry.name}: {outcome.verdict} {outcome.gone:.0%}", flush=True)


@main.command()
@click.argument("cut", type=click.Path(path_type=Path, exists=True))
@click.argument("onnx", type=click.Path(path_type=Path, exists=True))
@click.argument("peer", type=click.Path(path_type=Path, exists=True))
@click.argument("target", type=click.Path(path_type=Path))
def table(cut: Path, onnx: Path, peer: Path, target: Path) -> None:
    """Writes the table of the three files to TARGET; networks of the list that CUT lacks are named."""
    answers = {(outcome.family, outcome.name): outcome for outcome in read(cut)}
    outcomes = [
        answers.get((entry.family, entry.name), Outcome(entry.family, entry.name, NOT_ASKED))
        for entry in entries()
    ]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    target.write_text(as_markdown(outcomes, read(onnx), read(peer), versions))


if __name__ == "__main__":
    main()
