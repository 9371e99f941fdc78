"""When filter shapes pay: cropped and lowered 3x3 convolutions against dense ones, on a profile's runtime.

Every layer stands between two poolings of one pixel, as it would between other layers, and is timed
alternately with its forms. Nothing is trained: weights are random, and so is which positions live where no
crop is tried.

    python tools/bench_shapes.py --device x86-lowered-ort > shapes.md
"""

from __future__ import annotations

from collections.abc import Iterator

import click
import torch
from torch import Tensor, nn

from hwprune import load_profile
from hwprune.device.profile import DeviceProfile
from hwprune.runtime.base import get_runtime
from hwprune.runtime.environment import environment
from hwprune.shape_choice import fastest, time_forms
from hwprune.surgery.forms import possible_forms

#: Channels in and out, and the side of the map.
LAYERS = ((64, 28), (16, 32), (128, 14), (64, 8), (32, 16))
#: Shares of positions that live, drawn at random.
DENSITIES = (0.5, 0.35, 0.25, 0.1)
#: The kernel that is left and the places of it.
CROPS: dict[str, tuple[slice, slice]] = {
    "1x3": (slice(1, 2), slice(0, 3)),
    "3x1": (slice(0, 3), slice(1, 2)),
    "2x3": (slice(0, 2), slice(0, 3)),
    "1x1": (slice(1, 2), slice(1, 2)),
}


@click.command()
@click.option("--device", default="x86-lowered-ort", show_default=True, help="Profile name or folder.")
def main(device: str) -> None:
    """Prints a table in Markdown."""
    profile, facts = load_profile(device), environment()
    kind = profile.runtime.kind
    print(f"{facts['cpu']} ({facts['isa']}), {kind} {get_runtime(kind).version()}, one thread, batch 1.")
    print()
    print("| layer | living | dense, us | other forms, us | the best against dense | the surgeon takes |")
    print("|---|---|---|---|---|---|")
    for channels, side in LAYERS:
        for living, mask in masks(channels):
            print(row(channels, side, living, mask, profile), flush=True)


def masks(channels: int) -> Iterator[tuple[str, Tensor]]:
    """Names and flags ``(channels, 3, 3)`` of the positions that live."""
    for name, (rows, columns) in CROPS.items():
        mask = torch.zeros(channels, 3, 3, dtype=torch.bool)
        mask[:, rows, columns] = True
        yield f"{name} of the kernel", mask
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(channels, 3, 3, generator=generator)
    for density in DENSITIES:
        yield f"{density:.0%} of the positions", scores < scores.quantile(density)


def row(channels: int, side: int, living: str, mask: Tensor, profile: DeviceProfile) -> str:
    """One layer with some positions alive, as a row of the table."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, channels, 3, padding=1)
    with torch.no_grad():
        convolution.weight.mul_(mask)
    forms = possible_forms("layer", convolution)
    medians = time_forms(convolution, forms, (channels, side, side), profile)
    dense, *others = medians.values()
    cells = (
        f"{channels} to {channels} on {side}x{side}",
        living,
        f"{dense:.1f}",
        ", ".join(f"{form.kind} {medians[form.kind]:.1f}" for form in forms),
        f"{min(others) / dense:.2f}",
        fastest(medians),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
