"""Who is compared: one entry of :data:`CONTENDERS` each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from latency import TOLERANCE, Landed, UndisturbedBench, land
from task import (
    DENSE_PART,
    Job,
    Made,
    first_channels,
    reinitialised,
    run_epochs,
    uniform,
)
from torch import nn

from hwprune import Compressor, Keep, Speedup
from hwprune.cli.training import RECONSTRUCTION_IMAGES
from hwprune.graph.axes import BoolArray
from hwprune.groups.channel import ChannelGroups
from hwprune.surgery.rebuild import rebuild
from hwprune.targets import Target
from hwprune.train.distillation import Distillation
from hwprune.train.loop import Teacher, Trainer
from hwprune.train.schedule import StrengthSchedule
from hwprune.workloads import spread

#: Half of the loss from the dense network's answers.
DISTILLATION = Distillation(0.5)
#: Trainings at most, for those whose latency is only known once they are trained.
MOST_TRAININGS = 3


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to a faster network.

    Attributes:
        what: In a few words, for the table.
        make: From a job to a trained network.
        packages: What it needs from PyPI, in an environment of its own.
        scratch: Whether it can start from random weights.
    """

    what: str
    make: Callable[[Job], Made]
    packages: tuple[str, ...] = ()
    scratch: bool = True


def compressed(
    job: Job,
    *,
    penalty: str = "envelope",
    distil: bool = False,
    pull: bool = False,
    fit: bool = True,
    target: Target | None = None,
) -> Made:
    """Our own, as ``hwprune prune`` does it.

    Args:
        job: The run.
        penalty: Which.
        distil: Learn from the dense network too.
        pull: Let the penalty pull where the start is trained, instead of settling at once.
        fit: Fit what survives of a trained network to what it computed before.
        target: Instead of the job's speed-up.
    """
    network = job.copy_of_dense()
    steps = job.trainer(network).total_steps
    compressor = Compressor(
        network,
        job.example,
        job.profile,
        target or Speedup(job.speedup),
        total_steps=steps,
        penalty=penalty,
        schedule=StrengthSchedule.from_trained(steps, pull=pull) if job.starts_trained else None,
        bench=UndisturbedBench(),
    )
    if fit and job.starts_trained:
        compressor.reconstruct_on(spread(job.dataset.train_images, RECONSTRUCTION_IMAGES))
    teacher = Teacher(job.copy_of_dense(), DISTILLATION) if distil else None
    run_epochs(job.trainer(network, wrap=compressor.wrap, teacher=teacher))
    result = compressor.finish()
    return Made(result.model, tries=len(result.report.turns))


def by_count(job: Job) -> Made:
    """The envelope with a budget in groups, trained again with another one where the latency misses."""
    fraction = 1 / job.speedup
    best: tuple[float, nn.Module] | None = None
    trainings = 0
    while trainings < MOST_TRAININGS:
        trainings += 1
        network = compressed(job, target=Keep(fraction)).network
        reached = job.stopwatch.speedup(network)
        if best is None or _better(reached, best[0], job.speedup):
            best = (reached, network)
        if job.speedup <= reached <= job.speedup * (1 + TOLERANCE):
            break
        fraction = min(1.0, fraction * reached / (job.speedup * (1 + TOLERANCE / 2)))
    assert best is not None  # at least one training
    return Made(best[1], trainings, tries=trainings)


def _better(reached: float, best: float, target: float) -> bool:
    """Fast enough by less, or nearer to it."""
    if best < target:
        return reached > best
    return target <= reached < best


def cut_once(job: Job, choose: Callable[[Job, nn.Module], Landed], *, distil: bool = False) -> Made:
    """Cuts a trained network and trains it on.

    From scratch the network is first trained for a part of the schedule, which goes on after the cut.
    """
    dense = job.copy_of_dense()
    before = job.trainer(dense)
    if not job.starts_trained:
        run_epochs(before, max(1, round(DENSE_PART * job.recipe.epochs)))
    landed = choose(job, dense)
    after = continued(job, before, landed.network)
    if distil:
        after.teacher = Teacher(job.copy_of_dense(), DISTILLATION)
    run_epochs(after)
    return Made(after.model, tries=landed.tries)


def continued(job: Job, before: Trainer, network: nn.Module) -> Trainer:
    """A training of ``network`` that goes on where the one before it has come to."""
    after = job.trainer(network)
    state = before.state_dict()
    after.scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None]})
    for group, rate in zip(after.optimizer.param_groups, after.scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
    after.generator.set_state(state["generator"])
    after.epoch = before.epoch
    return after


def strongest(job: Job, network: nn.Module, widths: Mapping[str, int]) -> dict[str, BoolArray]:
    """Masks that keep the channels of the largest norm."""
    groups = ChannelGroups(network, job.axes, {axis.name: 1 for axis in job.axes})
    alive = torch.ones(groups.member_count, dtype=torch.bool)
    wanted = np.array([widths[axis.name] for axis in groups.axes])
    return groups.kept(groups.strongest(groups.member_norms(), alive, wanted))


def uniform_magnitude(job: Job, network: nn.Module) -> Landed:
    """The same fraction of every layer, in steps of the device, by norm."""

    def build(fraction: float) -> nn.Module:
        return rebuild(network, job.axes, strongest(job, network, uniform(job.axes, fraction, job.aligns)))

    return land(build, job.stopwatch, job.speedup)


def narrow(job: Job, *, aligned: bool, full: bool = False) -> Made:
    """A uniformly narrower network from random weights."""
    dense = job.copy_of_dense()

    def build(fraction: float) -> nn.Module:
        widths = uniform(job.axes, fraction, job.aligns if aligned else None)
        return rebuild(dense, job.axes, first_channels(job.axes, widths))

    landed = land(build, job.stopwatch, job.speedup)
    network = reinitialised(landed.network, job.seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    recipe = replace(job.task.recipe, seed=job.seed, epochs=job.recipe.epochs)
    if full:
        recipe = replace(recipe, epochs=job.task.epochs + job.task.left)
    run_epochs(job.trainer(network, recipe))
    return Made(network, tries=landed.tries)


def pruned_by_peer(job: Job, network: nn.Module, *, method: str) -> Landed:
    """Torch-Pruning with one of its importances; imported here, as it lives in an environment of its own."""
    from peer_torch_pruning import cut

    def build(ratio: float) -> nn.Module:
        return cut(network, job.example, method, 1 - ratio, max(job.aligns.values()))

    return land(build, job.stopwatch, job.speedup)


def sparse_then_cut(job: Job, *, method: str) -> Made:
    """Torch-Pruning's training with its regulariser for half of the epochs, then the cut, then the rest."""
    from peer_torch_pruning import regularised

    network = job.copy_of_dense()
    before = job.trainer(network, wrap=regularised(network, job.example, method))
    part = 0.5 if job.starts_trained else DENSE_PART
    run_epochs(before, max(1, round(part * job.recipe.epochs)))
    landed = pruned_by_peer(job, network, method=method)
    after = continued(job, before, landed.network)
    run_epochs(after)
    return Made(after.model, tries=landed.tries)


_PEER = ("torch-pruning==1.6.1",)

CONTENDERS: dict[str, Contender] = {
    "hwprune": Contender(
        "in microseconds; the envelope from scratch, settled at once from a trained start", compressed
    ),
    "hwprune-distil": Contender("hwprune, taught by the dense network too", partial(compressed, distil=True)),
    "hwprune-unfitted": Contender(
        "hwprune, without fitting survivors to the trained start", partial(compressed, fit=False)
    ),
    "hwprune-pull": Contender(
        "in microseconds, the envelope pulling from a trained start too", partial(compressed, pull=True)
    ),
    "hwprune-count": Contender("the envelope, in groups", by_count),
    "hwprune-magnitude": Contender(
        "from scratch, cut once by norm, in microseconds", partial(compressed, penalty="magnitude")
    ),
    "wgsef": Contender(
        "the plain envelope, in microseconds", partial(compressed, penalty="wgsef", pull=True)
    ),
    "group-lasso": Contender(
        "group lasso, in microseconds", partial(compressed, penalty="group-lasso", pull=True)
    ),
    "halo": Contender("HALO on groups, in microseconds", partial(compressed, penalty="halo", pull=True)),
    "magnitude": Contender(
        "the same part of every layer by norm, in the device's steps",
        partial(cut_once, choose=uniform_magnitude),
    ),
    "tp-magnitude": Contender(
        "Torch-Pruning, global magnitude",
        partial(cut_once, choose=partial(pruned_by_peer, method="magnitude")),
        _PEER,
    ),
    "tp-isomorphic": Contender(
        "Torch-Pruning, isomorphic",
        partial(cut_once, choose=partial(pruned_by_peer, method="isomorphic")),
        _PEER,
    ),
    "tp-bn-scale": Contender(
        "Torch-Pruning, batch-norm scales, sparse training",
        partial(sparse_then_cut, method="bn-scale"),
        _PEER,
    ),
    "tp-group-norm": Contender(
        "Torch-Pruning, group norm, sparse training", partial(sparse_then_cut, method="group-norm"), _PEER
    ),
    "narrow": Contender("uniformly narrower, from random weights", partial(narrow, aligned=False)),
    "narrow-aligned": Contender("the same in the device's steps", partial(narrow, aligned=True)),
    "narrow-aligned-full": Contender(
        "the same with all epochs of the dense network and of the fine-tuning",
        partial(narrow, aligned=True, full=True),
        scratch=False,
    ),
}
