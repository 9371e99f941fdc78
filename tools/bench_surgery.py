"""Times the surgery of large networks and takes its memory: discovery, rebuilding, verification, trials.

    python tools/bench_surgery.py resnet50 vit_b_16

Needs torchvision, installed with ``--no-deps``. Memory is the peak of the process above what it held before
the network was made, over the bytes of the network, itself included.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
import torch
from zoo_cut import half
from zoo_networks import declare_detection_operators

from hwprune.graph.coupling import find_axes
from hwprune.surgery.prove import prove
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.trial import zeroed
from hwprune.surgery.verify import verify

Result = TypeVar("Result")


def memory_bytes(key: str) -> int:
    """A figure of this process: ``VmRSS`` now, ``VmHWM`` at the highest since it was reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise click.ClickException(f"/proc/self/status has no {key}")


def observed(what: str, work: Callable[[], Result], before: int, size: int) -> Result:
    """Does ``work`` and prints how long it took and how much memory was held at most."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    started = time.perf_counter()
    result = work()
    seconds, peak = time.perf_counter() - started, memory_bytes("VmHWM") - before
    print(f"| {what} | {seconds:.1f} | {peak / size:.1f} |", flush=True)
    return result


def examine(name: str, batch: int) -> None:
    """One network of torchvision."""
    models = importlib.import_module("torchvision.models")
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    torch.nn.Conv2d(3, 3, 3)(images)  # what the first operator of all allocates for good
    before = memory_bytes("VmRSS")
    torch.manual_seed(0)
    model = models.get_model(name, weights=None).eval()
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    print(f"\n{name}, {size / 2**20:.0f} MiB, {batch} images of 224 x 224")
    print("\n| step | seconds | memory |\n|---|---|---|")
    axes = observed("discovery", lambda: find_axes(model, images), before, size)
    free = [axis for axis in axes if axis.pinned is None]
    kept = half(free)
    for axis in free:
        zeroed(model, axis, kept[axis.name]).__enter__()  # for good
    slim = observed("rebuilding", lambda: rebuild(model, free, kept), before, size)
    check = functools.partial(verify, model, slim, [images], axes=free, kept=kept)
    observed("verification", check, before, size)
    del slim, check
    aligns = {axis.name: min(8, axis.width - 1) for axis in axes}
    observed("trial of every axis", lambda: prove(model, axes, images, aligns), before, size)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--batch", default=2, show_default=True)
def main(names: tuple[str, ...], batch: int) -> None:
    """Examines networks of torchvision by name."""
    torch.set_num_threads(1)
    library = declare_detection_operators()
    for name in names:
        examine(name, batch)
    del library


if __name__ == "__main__":
    main()
