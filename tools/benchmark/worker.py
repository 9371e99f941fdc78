"""Does one run: ``python worker.py RUN.json``; called by the benchmark, in the contender's environment."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from contenders import CONTENDERS
from journal import DENSE, Outcome, Run
from latency import Stopwatch
from safetensors.torch import load_file, save_file
from task import Job, Made, Task, glanced, load_device, run_epochs, score, timed
from torch import nn

from hwprune.graph.coupling import find_axes
from hwprune.runtime.export import export
from hwprune.train.loop import Trainer


def work(run: Run, folder: Path) -> Outcome:
    """Trains, scores and exports.

    Args:
        run: What to do.
        folder: Where networks are kept.
    """
    task = run.task
    dataset = task.dataset()
    example, exported = dataset.test_images[:2], folder / f"{run.key}.onnx"
    if run.contender == DENSE:
        started = time.perf_counter()
        trained = trained_dense(task, run.seed)
        made = Made(trained, seconds=time.perf_counter() - started)
        save_file(made.network.state_dict(), folder / f"{run.key}.safetensors")
        export(trained.eval(), exported, example)
        job = job_of(run, folder)
    else:
        job = job_of(run, folder)
        made = timed(CONTENDERS[run.contender].make, job)
        export(made.network.eval(), exported, example)
    network = made.network
    return Outcome(
        score(network, dataset),
        made.seconds,
        made.trainings,
        channels(network),
        parameters(network),
        tries=made.tries,
        groups=groups(network, job),
    )


def trained_dense(task: Task, seed: int) -> nn.Module:
    """The dense network after its epochs."""
    network = task.untrained(seed)
    run_epochs(Trainer(network, glanced(task.dataset()), replace(task.recipe, seed=seed)))
    return network


def job_of(run: Run, folder: Path) -> Job:
    """The run with the dense network it starts from."""
    task, dense = run.task, run.dense
    network = task.untrained(run.seed)
    if task.left > 0:
        network.load_state_dict(load_file(folder / f"{dense.key}.safetensors"))
    example = task.dataset().test_images[:2]
    stopwatch = Stopwatch(folder / f"{dense.key}.onnx", load_device(task.device), example)
    return Job(task, run.seed, run.speedup, network, stopwatch, run.regularisation)


def groups(network: nn.Module, job: Job) -> int:
    """Steps of the device that are left on all axes that may shrink."""
    axes = find_axes(network, job.example)
    return sum(-(-axis.width // job.aligns.get(axis.name, 1)) for axis in axes if axis.pinned is None)


def channels(network: nn.Module) -> int:
    """Output channels of all convolutions that are not depthwise."""
    return sum(
        module.out_channels
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1
    )


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def main() -> None:
    """Reads the run, does it and writes the outcome beside it."""
    torch.set_num_threads(1)
    path = Path(sys.argv[1])
    run = Run.from_record(json.loads(path.read_text()))
    outcome = work(run, path.parent)
    path.with_suffix(".outcome").write_text(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
