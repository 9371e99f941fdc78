"""Compares hwprune with what a user would pick instead, at the same measured latency.

    python tools/benchmark --out docs/benchmark.md

Every contender gets the same start and the same epochs, and is tuned until its network is as fast as was
asked for. Finished runs are kept and not repeated; in the end all networks are timed alternately in one run.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click
from contenders import CONTENDERS
from environments import python_with
from journal import DENSE, Outcome, Run, note, read
from page import write_pages
from revision import fingerprint
from task import Task, load_device

from hwprune.runtime.timing import Timing, measure_alternately


def planned(
    task: Task, seeds: Sequence[int], speedups: Sequence[float], names: Sequence[str], regularisation: float
) -> Iterator[Run]:
    """Every run, seed by seed, so that an unfinished benchmark compares all contenders."""
    whole = [name for name in names if CONTENDERS[name].whole]
    for seed in seeds:
        yield from (Run(task, name, seed, 1.0) for name in (DENSE, *whole))
        for speedup in speedups:
            for name in names:
                if name not in whole:
                    strength = regularisation if CONTENDERS[name].regularised else 0.0
                    yield Run(task, name, seed, speedup, strength)


def entrants(task: Task, wished: Sequence[str]) -> list[str]:
    """Who takes part: those that were named, or everybody who can.

    Raises:
        UsageError: If one that was named cannot.
    """
    obstacles = {name: CONTENDERS[name].obstacle(task) for name in wished or CONTENDERS}
    for name in wished:
        if obstacles[name]:
            raise click.UsageError(f"{name} cannot take part: {obstacles[name]}")
    return [name for name, obstacle in obstacles.items() if not obstacle]


def do(run: Run, folder: Path) -> Outcome:
    """One run, in a process and in the environment of its contender."""
    packages = () if run.contender == DENSE else CONTENDERS[run.contender].packages
    try:
        python = python_with(packages, folder / "environments")
    except click.ClickException as error:  # the others can do without
        return Outcome.failed(error.message)
    order = folder / f"{run.key}.json"
    order.write_text(json.dumps(asdict(run)))
    worker = Path(__file__).with_name("worker.py")
    log = folder / f"{run.key}.log"
    with log.open("w") as output:
        done = subprocess.run(
            [str(python), str(worker), str(order)],
            check=False,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    if done.returncode:
        return Outcome.failed((log.read_text().strip().splitlines() or ["no message"])[-1][:200])
    return Outcome(**json.loads(order.with_suffix(".outcome").read_text()))


def finish(
    wanted: Sequence[Run], known: Mapping[Run, Outcome], save: Callable[[Run, Outcome], None], work: Path
) -> dict[Run, Outcome]:
    """What all wanted runs came to; those that are not known are done.

    Args:
        wanted: The dense network of a seed before the others.
        known: What earlier ones came to.
        save: Keeps what a run came to.
        work: Where networks are.
    """
    outcomes: dict[Run, Outcome] = {}
    for run in wanted:
        if run in known:
            outcomes[run] = known[run]
            continue
        dense = outcomes.get(run.dense)
        if dense is not None and dense.error:
            outcomes[run] = Outcome.failed("there is no dense network of this seed")
            continue
        outcomes[run] = do(run, work)
        save(run, outcomes[run])
        click.echo(f"{run.contender} x{run.speedup:g} seed {run.seed}: {outcomes[run]}")
    return outcomes


def recall(journal: Path, made_by: str, *, keep_old: bool) -> dict[Run, Outcome]:
    """What earlier runs came to, of this code where not told otherwise; says how many are left out."""
    everything, known = read(journal), read(journal, made_by)
    if keep_old:
        return everything
    others = len(everything.keys() - known.keys())
    if others:
        click.echo(
            f"{others} finished runs are of other code or versions and do not count; --keep-old takes them"
        )
    return known


def time_all(runs: Sequence[Run], folder: Path) -> dict[Run, Timing]:
    """Times all networks of a seed alternately, seed by seed."""
    timings: dict[Run, Timing] = {}
    for seed in sorted({run.seed for run in runs}):
        paths = {run.key: folder / f"{run.key}.onnx" for run in runs if run.seed == seed}
        found = measure_alternately(paths, load_device(runs[0].task.device))
        timings |= {run: found[run.key] for run in runs if run.seed == seed}
    return timings


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The page; a picture goes beside it."
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("benchmark-work"),
    show_default=True,
    help="Where networks, environments and the finished runs are kept.",
)
@click.option("--network", default="vgg16", show_default=True)
@click.option("--fraction", default=0.25, show_default=True, help="Of the network's channels in every layer.")
@click.option("--images", default=6000, show_default=True, help="Training images.")
@click.option("--epochs", default=20, show_default=True, help="Of the dense network.")
@click.option(
    "--left", default=2, show_default=True, help="From the trained network; 0: all start from scratch."
)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--learning-rate", default=0.1, show_default=True)
@click.option("--device", default="x86-avx2-ort", show_default=True)
@click.option("--seeds", default=3, show_default=True, help="How many.")
@click.option("--first-seed", default=0, show_default=True)
@click.option(
    "--regularisation",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Strength of the regularisers of those who have one; by default the package's. To choose it, try "
    "some with a seed that is not reported, such as --first-seed 100 --seeds 1.",
)
@click.option("--speedup", "speedups", type=float, multiple=True, default=(2.0, 3.0, 5.0), show_default=True)
@click.option("--contender", "names", type=click.Choice(list(CONTENDERS)), multiple=True, help="Only these.")
@click.option("--retry-failed", is_flag=True, help="Do again what failed before.")
@click.option("--keep-old", is_flag=True, help="Take runs that other code, or other versions, made.")
@click.option("--page-only", is_flag=True, help="Train nothing more; time and show what there is.")
def main(
    out: Path,
    work: Path,
    network: str,
    fraction: float,
    images: int,
    epochs: int,
    left: int,
    batch_size: int,
    learning_rate: float,
    device: str,
    seeds: int,
    first_seed: int,
    regularisation: float,
    speedups: tuple[float, ...],
    names: tuple[str, ...],
    retry_failed: bool,
    keep_old: bool,
    page_only: bool,
) -> None:
    """Runs what is missing, times everything and writes the page."""
    task = Task(network, fraction, images, epochs, left, batch_size, learning_rate, device)
    work.mkdir(parents=True, exist_ok=True)
    journal, made_by = work / "runs.jsonl", fingerprint()
    known = recall(journal, made_by, keep_old=keep_old)
    if retry_failed:
        known = {run: outcome for run, outcome in known.items() if not outcome.error}
    tried = range(first_seed, first_seed + seeds)
    wanted = list(planned(task, tried, speedups, entrants(task, names), regularisation))
    if page_only:
        wanted = [run for run in wanted if run in known and run.dense in known]
    if not wanted:
        raise click.ClickException("no run is finished that could be shown: leave out --page-only")
    outcomes = finish(wanted, known, lambda run, outcome: note(journal, run, outcome, made_by), work)
    there = [run for run in wanted if not (outcomes[run].error or outcomes[run.dense].error)]
    others = {run: known[run] for run in known if run.task == task and run not in outcomes}
    write_pages(out, outcomes, time_all(there, work), others, seeds)


if __name__ == "__main__":
    main()
