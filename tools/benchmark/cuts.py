"""Ways that end in one cut, or start from random weights: cut, land on the latency, train on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from latency import Landed, land
from task import DENSE_PART, Job, Made, first_channels, reinitialised, run_epochs, uniform
from torch import Tensor, nn

from hwprune.graph.axes import BoolArray
from hwprune.groups.channel import ChannelGroups
from hwprune.surgery.rebuild import rebuild
from hwprune.train.loop import Trainer
from hwprune.train.reconstruction import Reconstruction


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
    after.teacher = job.teacher if distil else None
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
    return groups.kept(_alive(groups, widths))


def _alive(groups: ChannelGroups, widths: Mapping[str, int]) -> Tensor:
    """Flags of the channels of the largest norm, shape ``(members,)``."""
    wanted = np.array([widths[axis.name] for axis in groups.axes])
    everyone = torch.ones(groups.member_count, dtype=torch.bool)
    return groups.strongest(groups.member_norms(), everyone, wanted)


def uniform_magnitude(job: Job, network: nn.Module) -> Landed:
    """The same fraction of every layer, in steps of the device, by norm."""

    def build(fraction: float) -> nn.Module:
        return rebuild(network, job.axes, strongest(job, network, uniform(job.axes, fraction, job.aligns)))

    return land(build, job.stopwatch, job.speedup)


def uniform_fitted(job: Job, network: nn.Module) -> Landed:
    """The same, and then what stays is fitted to what the trained network computed, as hwprune does it."""
    landed = uniform_magnitude(job, network)
    widths = uniform(job.axes, landed.fraction, job.aligns)
    masked = copy.deepcopy(network)
    reconstruction = Reconstruction(masked, job.reconstruction_images)
    groups = ChannelGroups(masked, job.axes, {axis.name: 1 for axis in job.axes})
    alive = _alive(groups, widths)
    with torch.no_grad():
        groups.scale_(alive)
    reconstruction.fit(masked)
    return replace(landed, network=rebuild(masked, job.axes, groups.kept(alive)))


def narrow(job: Job, *, aligned: bool, full: bool = False, distil: bool = False) -> Made:
    """A uniformly narrower network from random weights.

    Args:
        job: The run.
        aligned: In the device's steps.
        full: With the epochs of the dense network besides its own.
        distil: Learn from the dense network too.
    """
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
    run_epochs(job.trainer(network, recipe, teacher=job.teacher if distil else None))
    return Made(network, tries=landed.tries)


def pruned_by_peer(job: Job, network: nn.Module, *, method: str) -> Landed:
    """Torch-Pruning with one of its importances; imported here, as it lives in an environment of its own."""
    from peer_torch_pruning import cut

    steps: dict[int, int] = {}
    for axis in job.axes:
        if axis.name in job.aligns:
            step = job.aligns[axis.name]
            steps[axis.width] = min(steps.get(axis.width, step), step)

    def build(ratio: float) -> nn.Module:
        return cut(network, job.example, method, 1 - ratio, steps)

    return land(build, job.stopwatch, job.speedup)


def sparse_then_cut(job: Job, *, method: str) -> Made:
    """Torch-Pruning's training with its regulariser for half of the epochs, then the cut, then the rest."""
    from peer_torch_pruning import regularised

    network = job.copy_of_dense()
    before = job.trainer(network, wrap=regularised(network, job.example, method, job.regularisation))
    part = 0.5 if job.starts_trained else DENSE_PART
    run_epochs(before, max(1, round(part * job.recipe.epochs)))
    landed = pruned_by_peer(job, network, method=method)
    after = continued(job, before, landed.network)
    run_epochs(after)
    return Made(after.model, tries=landed.tries)
