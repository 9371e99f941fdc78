"""The networks that ``hwprune profile`` builds for and checks on."""

from __future__ import annotations

from collections.abc import Sequence

import click
import torch

from hwprune.errors import InputError
from hwprune.sampled_networks import Network
from hwprune.workloads import make_model

#: The networks that a profile covers and is checked on unless others are named.
DEFAULT_NETWORKS = (
    "resnet8:1x8x8",
    "lenet5:1x28x28",
    "resnet20:1x28x28",
    "mobilenetv1:1x28x28",
    "resnet18:1x28x28",
    "vgg16:1x28x28",
)
DEFAULT_SHAPE = "1x28x28"
networks_option = click.option(
    "--for",
    "networks",
    multiple=True,
    metavar="MODEL[:CxHxW]",
    help=f"Networks to cover: built-in names or package.module:callable, with the shape of an image "
    f"(default {DEFAULT_SHAPE}). Default: the built-in networks.",
)


def make_networks(specs: Sequence[str]) -> dict[str, Network]:
    """Networks from ``MODEL[:CxHxW]``.

    Raises:
        InputError: If a shape is malformed.
        WorkloadError: If there is no such network.
    """
    networks = {}
    for spec in specs:
        name, separator, shape = spec.rpartition(":")
        if not separator or not shape[:1].isdigit():
            name, shape = spec, DEFAULT_SHAPE
        try:
            channels, height, width = (int(size) for size in shape.split("x"))
        except ValueError as error:
            raise InputError(
                "the shape of the image is malformed", where=f"--for {spec}", expected="CxHxW", got=shape
            ) from error
        if min(channels, height, width) < 1 or height != width:
            raise InputError(
                "no such image", where=f"--for {spec}", expected="square, at least 1x1x1", got=shape
            )
        model = make_model(name, in_channels=channels, image_size=height, classes=10, seed=0)
        networks[f"{name}:{shape}"] = Network(model, torch.zeros(2, channels, height, width))
    return networks
