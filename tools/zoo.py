"""Cuts many published networks in half and compares each with its masked form.

    python tools/zoo.py run --out zoo.jsonl           a line per network; goes on where it stopped
    python tools/zoo.py table zoo.jsonl docs/zoo.md   the table

Needs torchvision, timm, pytorchcv and transformers; installed with ``--no-deps`` they do not replace PyTorch.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import click
import numpy as np
import torch
import zoo_peer
from torch import nn
from zoo_networks import Entry, Inputs, build, declare_detection_operators, entries

from hwprune.graph.axes import BoolArray, ChannelAxis
from hwprune.graph.coupling import find_axes
from hwprune.surgery.prove import randomised, zeroed
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.verify import compare, outputs_of

#: Networks run in double precision, where rounding stays far below this and a wrong cut far above.
TOLERANCE = 1e-6
ENOUGH = 0.3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one network.

    Attributes:
        family: The package it comes from.
        name: Its name there.
        verdict: ``pruned``, ``partly pinned``, ``refused``, ``WRONG``, or ``not built``.
        gone: Share of the parameters that were cut.
        axes: Number of channel axes.
        cut: Number of axes that were cut.
        reasons: Why axes were kept, with how many of them.
        discovery_s: Seconds it took to find the axes.
        peer: What torch-pruning did.
        peer_gone: Share of the parameters that it cut.
    """

    family: str
    name: str
    verdict: str
    gone: float = 0.0
    axes: int = 0
    cut: int = 0
    reasons: Mapping[str, int] | None = None
    discovery_s: float = 0.0
    peer: str = ""
    peer_gone: float = 0.0


Examiner = Callable[[Entry], Outcome]


def half(axes: Sequence[ChannelAxis]) -> dict[str, BoolArray]:
    """Masks that keep a random half of the channels of every axis."""
    rng = np.random.default_rng(0)
    return {axis.name: rng.permutation(axis.width) < (axis.width + 1) // 2 for axis in axes}


def cut(dense: nn.Module, axes: Sequence[ChannelAxis], inputs: Inputs) -> tuple[str | None, float]:
    """Cuts the axes in half; why the result is not equal to the masked network, and the share gone."""
    kept = half(axes)
    with contextlib.ExitStack() as zeros:
        for axis in axes:
            zeros.enter_context(zeroed(dense, axis, kept[axis.name]))
        expected = outputs_of(dense, inputs)
        try:
            slim = rebuild(dense, axes, kept)
            actual = outputs_of(slim, inputs)
        except Exception:  # a cut network may raise anything where a width is repeated as a number
            return "a width is repeated as a number in the forward pass", 0.0
    if compare(expected, actual).relative > TOLERANCE:
        return "a zeroed channel still acts on the network", 0.0
    before, after = (sum(p.numel() for p in net.parameters()) for net in (dense, slim))
    return None, 1 - after / before


def examine(entry: Entry) -> Outcome:
    """Finds the axes of one network, tries them, and cuts those that came out equal, all together."""
    try:
        model, inputs = build(entry)
        outputs_of(model, inputs)
    except Exception as error:  # a package that is missing, or a name that it no longer has
        return _not(entry, "built", f"{type(error).__name__}: {error}"[:120])
    started = time.perf_counter()
    axes = find_axes(model, inputs)
    discovery_s = time.perf_counter() - started
    dense = randomised(model, torch.Generator().manual_seed(0)).eval()
    reasons = Counter(axis.pinned.split(" (in ")[0] for axis in axes if axis.pinned)
    free = [axis for axis in axes if axis.pinned is None]
    why, gone = cut(dense, free, inputs)
    if why is not None:
        tried = [(axis, cut(dense, [axis], inputs)[0]) for axis in free]
        reasons.update(reason for _axis, reason in tried if reason)
        free = [axis for axis, reason in tried if reason is None]
        why, gone = cut(dense, free, inputs)
    verdict = "WRONG" if why else "pruned" if gone >= ENOUGH else "partly pinned" if free else "refused"
    return Outcome(
        family=entry.family,
        name=entry.name,
        verdict=verdict,
        gone=gone,
        axes=len(axes),
        cut=len(free),
        reasons=dict(reasons),
        discovery_s=discovery_s,
    )


def examine_peer(entry: Entry) -> Outcome:
    """Lets torch-pruning cut the same network with the same weights."""
    model, inputs = build(entry)
    modules = {name for name, _module in model.named_modules()}
    ends = [axis.name for axis in find_axes(model, inputs) if axis.pinned == "network output"]
    dense = randomised(model, torch.Generator().manual_seed(0)).eval()
    peer, gone = zoo_peer.judge(dense, inputs, [name for name in ends if name in modules], TOLERANCE)
    return Outcome(entry.family, entry.name, "", peer=peer, peer_gone=gone)


def _not(entry: Entry, what: str, reason: str) -> Outcome:
    """A network that was not built or not run, and why."""
    return Outcome(entry.family, entry.name, f"not {what}", reasons={reason: 1})


def _apart(examiner: Examiner, entry: Entry, answer: Connection) -> None:
    """Runs in a process of its own, so that neither memory nor a crash carries over."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    library = declare_detection_operators()
    answer.send(examiner(entry))
    del library


def within(seconds: float, examiner: Examiner, entry: Entry) -> Outcome:
    """Examines one network in a process of its own, for at most ``seconds``."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_apart, args=(examiner, entry, theirs))
    process.start()
    theirs.close()
    try:
        if ours.poll(seconds):
            outcome: Outcome = ours.recv()
            return outcome
        return _not(entry, "run", f"not done within {seconds:.0f} s")
    except EOFError:
        return _not(entry, "run", "the process ended without an answer")
    finally:
        process.kill()
        process.join()


def examine_both(entry: Entry, seconds: float) -> Outcome:
    """Ours and torch-pruning's outcome, each within ``seconds``."""
    outcome = within(seconds, examine, entry)
    if outcome.verdict == "not built":
        return outcome
    peer = within(seconds, examine_peer, entry)
    return replace(outcome, peer=peer.peer or "not done in time", peer_gone=peer.peer_gone)


@click.group()
def main() -> None:
    """Cuts many networks in half and compares each with its masked form."""


@main.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A line of JSON per network.")
@click.option("--only", default="", help="A family, or a part of a name.")
@click.option("--seconds", default=240.0, show_default=True, help="Time for one network.")
def run(out: Path, only: str, seconds: float) -> None:
    """Examines every network that OUT has no line of yet."""
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(line["family"], line["name"]) for line in lines}
    for entry in entries():
        if (entry.family, entry.name) in done or only not in f"{entry.family}/{entry.name}":
            continue
        outcome = examine_both(entry, seconds)
        with out.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        print(f"{entry.family}/{entry.name}: {outcome.verdict} {outcome.gone:.0%}, peer {outcome.peer}")


@main.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("target", type=click.Path(path_type=Path))
def table(source: Path, target: Path) -> None:
    """Writes the table of SOURCE to TARGET."""
    outcomes = [Outcome(**json.loads(line)) for line in source.read_text().splitlines()]
    target.write_text(as_markdown(outcomes))


def _counts(verdicts: Counter[str]) -> str:
    """Verdicts with how often they occur."""
    return ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    """The page about the zoo."""
    judged = [outcome for outcome in outcomes if not outcome.verdict.startswith("not ")]
    verdicts = Counter(outcome.verdict for outcome in judged)
    peers = Counter(outcome.peer for outcome in judged)
    lines = [
        "# The zoo",
        "",
        "Written by `tools/zoo.py`. Every network has random weights, loses half of the channels of",
        "every axis that may shrink, and is compared in double precision with the same network whose",
        f"channels are merely zero (largest difference over largest output; more than {TOLERANCE:g} is",
        f"wrong). *Pruned* means at least {ENOUGH:.0%} of the parameters gone, *partly pinned* fewer,",
        "*refused* none. An axis whose trial by itself fails is kept, as the compressor keeps it before",
        "training.",
        "",
        "Beside it plain torch-pruning 1.6.1 (magnitude pruner, half of every layer, output layers",
        "ignored) on the same weights: *differs* means that the pruned network does not compute what the",
        "network with the same filters at zero computes, which torch-pruning does not promise; *crashes*",
        "that pruning or the forward pass after it raises; *nothing* that nothing was pruned.",
        "",
        f"{len(judged)} networks: {_counts(verdicts)}. torch-pruning: {_counts(peers)}.",
        "",
        "| network | result | gone | axes cut | why the others stay | torch-pruning | gone |",
        "|---|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        reasons = "; ".join(
            f"{reason} ({count})"
            for reason, count in Counter(outcome.reasons or {}).most_common()
            if reason != "network output"
        )
        peer_gone = f"{outcome.peer_gone:.0%}" if outcome.peer_gone else ""
        lines.append(
            f"| {outcome.family}/{outcome.name} | {outcome.verdict} | {outcome.gone:.0%} "
            f"| {outcome.cut}/{outcome.axes} | {reasons} | {outcome.peer} | {peer_gone} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
