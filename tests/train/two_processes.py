"""Trainings that are to come out the same in one process and in several; run as a script in each of these.

python two_processes.py RANK COUNT INIT_FILE OUT_FILE
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import hwprune
from hwprune.closed_loop import DeviceLoop
from hwprune.device.rows import Row
from hwprune.groups.shards import is_sharded, whole
from hwprune.operators import Operator, multiply_accumulates
from hwprune.processes import agree_, from_each, from_first
from hwprune.runtime.timing import Timing
from hwprune.train.randomness import Randomness
from hwprune.train.reconstruction import Reconstruction
from hwprune.train.together import add_up_gradients, share_of, shared_statistics, total

STEPS, BATCH, CLASSES = 40, 32, 3

Prepare = Callable[[nn.Module], nn.Module]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(),
        nn.ConvTranspose2d(32, 24, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, CLASSES),
    )  # fmt: skip


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    return torch.randn(BATCH, 1, 10, 10, generator=generator) + labels.view(-1, 1, 1, 1), labels


#: Target, granularity and penalty: a latency that is measured while it is settled, 2:4, and 2:4 by SR-STE.
CASES = {
    "channel": (hwprune.Speedup(1.3), "channel", "envelope"),
    "block": (hwprune.Keep(0.5), "block", "envelope"),
    "sr-ste": (hwprune.Keep(0.5), "block", "sr-ste"),
}


@contextmanager
def only_the_first_measures(rank: int) -> Iterator[None]:
    """Latencies by the number of channels in the first process; a failure in the others."""

    def measure(loop: DeviceLoop, networks: dict[str, dict[str, np.ndarray]]) -> dict[str, Timing]:
        assert rank == 0, "a process that is not the first one measures"
        dense = sum(axis.width for axis in loop.axes)
        took = {
            name: 20.0 + (sum(int(mask.sum()) for mask in kept.values()) if kept else dense)
            for name, kept in networks.items()
        }
        return {name: Timing(median, median, median, 9) for name, median in took.items()}

    def localize(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a process that is not the first one measures rows")

    def rows(operators: list[Operator], *_arguments: object) -> list[Row]:
        # By the work to do, so that no busy machine makes a target unreachable.
        times = [1.0 + multiply_accumulates(operator) / 1e4 for operator in operators]
        return [Row(replace(each, name=""), us) for each, us in zip(operators, times, strict=True)]

    with ExitStack() as patches:
        cache = patches.enter_context(tempfile.TemporaryDirectory())
        patches.enter_context(mock.patch.dict(os.environ, {"XDG_CACHE_HOME": cache}))
        patches.enter_context(mock.patch("hwprune.runtime.sampling._measure_chunk", rows))
        patches.enter_context(mock.patch.object(DeviceLoop, "measure", measure))
        if rank > 0:
            patches.enter_context(mock.patch("hwprune.runtime.bench.localize", localize))
        yield


def train(case: str, prepare: Prepare, rank: int, count: int) -> dict[str, Tensor]:
    """Trains and finishes; weights, survivors and the slim network's outputs."""
    model, (target, granularity, penalty) = network(), CASES[case]
    images, _ = batch(0)
    profile = hwprune.load_profile("x86-avx2-ort")
    with only_the_first_measures(rank):
        compressor = hwprune.Compressor(
            model,
            images[:2],
            profile,
            target,
            total_steps=STEPS,
            granularity=granularity,
            penalty=penalty,
        )
        trained = prepare(model)
        optimizer = compressor.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
        share = BATCH // count
        for step in range(STEPS):
            images, labels = (part[rank * share : (rank + 1) * share] for part in batch(step))
            optimizer.zero_grad()
            nn.functional.cross_entropy(trained(images), labels).backward()
            optimizer.step()
            if step == STEPS // 3:  # what is saved is whole, wherever it was spread
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        result = compressor.finish()
    with torch.no_grad():
        outputs = result.model.eval()(batch(0)[0])
    weights = {name: whole(tensor).clone() for name, tensor in model.state_dict().items()}
    momenta = {
        f"momentum {index}": whole(state["momentum_buffer"]).clone()
        for index, state in enumerate(optimizer.state.values())
    }
    limit = torch.tensor(compressor.proximal.allowance.limit)
    return {**weights, **momenta, "alive": compressor.proximal.alive, "outputs": outputs, "limit": limit}


def shard(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(is_sharded(parameter) for parameter in model.parameters())
    return model


def agreement(rank: int) -> dict[str, Tensor]:
    """What every process has after the first one has decided."""

    def refuse() -> None:
        raise hwprune.HwpruneError(f"refused by {rank}")

    try:
        from_first(refuse)
        raised = False
    except hwprune.HwpruneError as error:
        raised = str(error) == "refused by 0"
    drawn = Randomness(0).state_dict()
    return {
        "numbers": agree_(torch.tensor([0.0, 0.5]) + rank),
        "flags": agree_(torch.tensor([rank == 0, rank == 1])),
        "value": torch.tensor(from_first(lambda: rank)),
        "error raised": torch.tensor(raised),
        "from each": torch.tensor(from_each(rank)),
        **{f"drawn by {index}": state["torch"] for index, state in enumerate(drawn["processes"])},
    }


def fitted(rank: int) -> dict[str, Tensor]:
    """Survivors fitted on inputs that differ from process to process."""
    model = network()
    pruned = network()
    with torch.no_grad():
        for parameter in pruned[0].parameters():
            parameter[::2] = 0.0
    assert Reconstruction(model, batch(0)[0] + rank).fit(pruned)
    return {name: tensor.clone() for name, tensor in pruned.state_dict().items()}


def normalised() -> dict[str, Tensor]:
    """Output, gradients and running statistics of a batch norm, from a batch that the processes share."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, CLASSES))
    images, labels = (part[:7] for part in batch(0))  # shares of four and three
    with shared_statistics(model):
        logits = model(share_of(images))
    loss = nn.functional.cross_entropy(logits, share_of(labels)) * (len(logits) / len(labels))
    loss.backward()
    add_up_gradients(model.parameters())
    gradients = {name: item.grad for name, item in model.named_parameters() if item.grad is not None}
    statistics = {name: tensor.float() for name, tensor in model.named_buffers()}
    assert "forward" not in vars(model[1])  # the module is as it was
    return {**gradients, **statistics, "loss": torch.tensor(total(float(loss.detach())))}


PREPARATIONS: dict[str, Prepare] = {"ddp": DistributedDataParallel, "fsdp": shard}


def main(rank: int, count: int, init_file: str, out_file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=count)
    outcomes = {
        f"{kind} {case}": train(case, prepare, rank, count)
        for kind, prepare in PREPARATIONS.items()
        for case in CASES
    }
    outcomes["batch norm"] = normalised()
    outcomes["agreement"] = agreement(rank)
    outcomes["fitted"] = fitted(rank)
    torch.save(outcomes, f"{out_file}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
