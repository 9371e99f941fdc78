"""What each part of hwprune is worth: one is left out or changed at a time, at the same predicted latency.

    python tools/benchmark/ablate.py --out docs/ablation.md

Latencies are predictions (the same table for everybody), so that nothing needs an idle machine and trainings
run side by side, one thread each. Finished runs are kept and not repeated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import click
import torch
from ablation_page import as_markdown
from contenders import DISTILLATION
from journal import DENSE, Outcome, Run, note, read
from latency import Stopwatch
from safetensors.torch import load_file, save_file
from task import Job, Task, load_device, run_epochs, score
from torch import nn
from worker import channels, parameters, trained_dense

from hwprune import Compressor, HwpruneError, Keep, Speedup
from hwprune.cli.training import RECONSTRUCTION_IMAGES
from hwprune.files import write_text
from hwprune.result import Result
from hwprune.runtime.environment import local_profile
from hwprune.targets import Target
from hwprune.train.loop import Teacher
from hwprune.train.schedule import TRAINED_FULL, StrengthSchedule
from hwprune.workloads import spread

#: Name of the part that all others are compared with.
WHOLE = "whole"
#: Bisections of the fraction of the groups that is as fast as asked for.
BISECTIONS = 8


@dataclass(frozen=True, slots=True)
class Part:
    """hwprune with one thing changed.

    Attributes:
        what: In a few words, for the table.
        trained: Start from the trained network; else from random weights.
        pull: Fraction of the training over which the penalty pulls; ``None``: as the start has it.
        penalty: Which.
        fit: Choose the survivors by what their readers lose and fit them, both on training images.
        distil: Learn from the dense network too.
        count: Choose by a number of groups, not by microseconds; settled at once.
        rate: Factor on the learning rate.
        images: Training images that survivors are chosen and fitted on.
    """

    what: str
    trained: bool = True
    pull: float | None = None
    penalty: str = "envelope"
    fit: bool = True
    distil: bool = True
    count: bool = False
    rate: float = 1.0
    images: int = RECONSTRUCTION_IMAGES

    def schedule(self, total_steps: int) -> StrengthSchedule | None:
        """When the penalty pulls and when survivors are fixed; ``None``: the default from random weights."""
        if self.pull is not None:
            start = 0.0 if self.trained else TRAINED_FULL
            full = max(start, TRAINED_FULL)
            return StrengthSchedule(total_steps, start=start, full=full, settle=self.pull)
        return StrengthSchedule.from_trained(total_steps) if self.trained else None


_WHOLE = Part("as `prune` does it: channels settled at once by what their readers lose, fitted, distilled")
_SCRATCH = Part("from random weights: the exact envelope", trained=False, fit=False, distil=False)
PARTS: dict[str, Part] = {
    WHOLE: _WHOLE,
    "norm": replace(_WHOLE, what="channels and widths chosen by norm", penalty="magnitude"),
    "undistilled": replace(_WHOLE, what="without distillation", distil=False),
    "unfitted": replace(_WHOLE, what="channels and widths chosen by norm, no fit", fit=False),
    "bare": replace(_WHOLE, what="the same without distillation", fit=False, distil=False),
    "pull-quarter": replace(_WHOLE, what="the exact envelope pulls for a quarter", pull=0.25),
    "pull-half": replace(_WHOLE, what="the exact envelope pulls for half", pull=0.5),
    "plain-quarter": replace(
        _WHOLE, what="the plain envelope pulls for a quarter", pull=0.25, penalty="wgsef"
    ),
    "count": replace(_WHOLE, what="chosen by number of groups, not by microseconds", count=True),
    "gentle": replace(_WHOLE, what="a third of the learning rate", rate=1 / 3),
    "fierce": replace(_WHOLE, what="three times the learning rate", rate=3.0),
    "more-images": replace(_WHOLE, what="chosen and fitted on four times as many images", images=3072),
    "scratch": _SCRATCH,
    "scratch-plain": replace(_SCRATCH, what="from random weights: the plain envelope", penalty="wgsef"),
    "scratch-norm": replace(_SCRATCH, what="from random weights: cut once by norm", penalty="magnitude"),
    "scratch-distil": replace(
        _SCRATCH, what="from random weights: the exact envelope, distilled", distil=True
    ),
}


def compressor_of(part: Part, job: Job, network: nn.Module, steps: int, target: Target) -> Compressor:
    """Prunes to a predicted latency, or to a number of groups."""
    return Compressor(
        network,
        job.example,
        job.profile,
        target,
        total_steps=steps,
        penalty=part.penalty,
        schedule=part.schedule(steps),
        measure=False,
    )


def fraction_for(part: Part, job: Job) -> Keep:
    """The largest fraction of the groups whose strongest are as fast as the job asks for, predicted."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        network = job.copy_of_dense()
        compressor = compressor_of(part, job, network, 1, Keep(middle))
        optimizer = compressor.wrap(torch.optim.SGD(network.parameters(), lr=0.0))
        optimizer.step()
        low, high = (middle, high) if predicted_speedup(compressor.finish()) >= job.speedup else (low, middle)
    return Keep(low)


def pruned(part: Part, job: Job) -> tuple[nn.Module, float]:
    """The slim network after its training, and how many times faster it is predicted to be."""
    network = job.copy_of_dense() if part.trained else job.task.untrained(job.seed)
    recipe = job.recipe if part.trained else replace(job.task.recipe, seed=job.seed)
    recipe = replace(recipe, learning_rate=part.rate * recipe.learning_rate)
    steps = job.trainer(network, recipe).total_steps
    target = fraction_for(part, job) if part.count else Speedup(job.speedup)
    compressor = compressor_of(part, job, network, steps, target)
    if part.fit:
        compressor.reconstruct_on(spread(job.dataset.train_images, part.images))
    teacher = Teacher(job.copy_of_dense(), DISTILLATION) if part.distil else None
    run_epochs(job.trainer(network, recipe, compressor.wrap, teacher))
    result = compressor.finish()
    return result.model, predicted_speedup(result)


def predicted_speedup(result: Result) -> float:
    """How many times faster than the dense network."""
    dense, slim = (result.report.predicted_us[name] for name in ("dense", "slim"))
    if dense is None or slim is None:
        raise HwpruneError("the device has no price for an operator of the network")
    return dense / slim


def work(run: Run, folder: Path) -> tuple[Run, Outcome, float]:
    """Does one run, on one thread; the predicted speed-up comes last."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    dataset = run.task.dataset()
    if run.contender == DENSE:
        network, reached = trained_dense(run.task, run.seed), 1.0
        save_file(network.state_dict(), folder / f"{run.key}.safetensors")
    else:
        dense = run.task.untrained(run.seed)
        dense.load_state_dict(load_file(folder / f"{run.dense.key}.safetensors"))
        stopwatch = Stopwatch(folder, load_device(run.task.device), dataset.test_images[:2])
        network, reached = pruned(
            PARTS[run.contender], Job(run.task, run.seed, run.speedup, dense, stopwatch)
        )
    seconds = time.perf_counter() - started
    accuracy = score(network.eval(), dataset)
    return run, Outcome(accuracy, seconds, 1, channels(network), parameters(network)), reached


def planned(task: Task, seeds: int, speedups: Sequence[float], names: Sequence[str]) -> Iterator[list[Run]]:
    """Runs that may be made side by side: the dense networks, then everything else, seed by seed."""
    yield [Run(task, DENSE, seed, 1.0) for seed in range(seeds)]
    yield [Run(task, name, seed, speedup) for seed in range(seeds) for speedup in speedups for name in names]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The page.")
@click.option(
    "--work", "folder", type=click.Path(path_type=Path), default=Path("ablation-work"), show_default=True
)
@click.option("--network", default="resnet20", show_default=True)
@click.option("--fraction", default=1.0, show_default=True, help="Of the network's channels in every layer.")
@click.option("--images", default=6000, show_default=True, help="Training images.")
@click.option("--epochs", default=5, show_default=True, help="Of the dense network, and from random weights.")
@click.option("--left", default=5, show_default=True, help="From the trained network.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--learning-rate", default=0.1, show_default=True)
@click.option("--device", help="By default the measured profile of this machine.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--speedup", "speedups", type=float, multiple=True, default=(2.0, 3.0), show_default=True)
@click.option("--part", "names", type=click.Choice(list(PARTS)), multiple=True, help="Only these.")
@click.option("--jobs", default=2, show_default=True, help="Trainings side by side, one thread each.")
def main(
    out: Path, folder: Path, network: str, fraction: float, images: int, epochs: int, left: int,
    batch_size: int, learning_rate: float, device: str | None, seeds: int, speedups: tuple[float, ...],
    names: tuple[str, ...], jobs: int,
) -> None:  # fmt: skip
    """Runs what is missing and writes the page."""
    device = device or local_profile().name
    task = Task(network, fraction, images, epochs, left, batch_size, learning_rate, device)
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / "runs.jsonl"
    known = read(journal)
    wanted: list[Run] = []
    # Processes of their own: threads of torch do not survive a fork.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for batch in planned(task, seeds, speedups, names or tuple(PARTS)):
            wanted += batch
            for future in [pool.submit(work, run, folder) for run in batch if run not in known]:
                run, known[run], reached = future.result()
                note(journal, run, known[run])
                click.echo(
                    f"{run.contender} x{run.speedup:g} seed {run.seed}: {known[run]} at {reached:.3f}x"
                )
    descriptions = {name: part.what for name, part in PARTS.items()}
    write_text(out, as_markdown({run: known[run] for run in wanted}, WHOLE, descriptions))


if __name__ == "__main__":
    main()
