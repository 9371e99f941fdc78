"""The networks that ``hwprune profile`` builds for and checks on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click
import torch

from hwprune.device.profile import LatencySpec
from hwprune.errors import InputError
from hwprune.sampled_networks import Network
from hwprune.workloads import image_size_of, make_model

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
#: Logits of a network that is made only to be looked at or timed.
CLASSES = 10
networks_option = click.option(
    "--for",
    "networks",
    multiple=True,
    metavar="MODEL[:CxHxW]",
    help=f"Networks to cover: built-in names or package.module:callable, with the shape of an image "
    f"(default {DEFAULT_SHAPE}). Default: the built-in networks.",
)
passes_option = click.option(
    "--passes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Measure everything so often, one pass after the other, and count the least disturbed: on a machine "
    "whose memory others use, too.",
)


def make_networks(specs: Sequence[str]) -> dict[str, Network]:
    """Networks from ``MODEL[:CxHxW]``.

    Raises:
        InputError: If a shape is malformed.
        WorkloadError: If there is no such network.
    """
    networks = {}
    for spec in specs:
        name, shape = name_and_shape(spec, f"--for {spec}")
        channels, *size = shape
        model = make_model(
            name, in_channels=channels, image_size=image_size_of(*size), classes=CLASSES, seed=0
        )
        networks[f"{name}:{as_text(shape)}"] = Network(model, torch.zeros(2, *shape))
    return networks


def further_terms(latency: LatencySpec) -> str:
    """What a calibration has besides factor and overhead, as the end of a line; mostly nothing.

    >>> from hwprune.device.kernel_factors import KernelFactors
    >>> further_terms(LatencySpec(kernels=KernelFactors(linear=1.75), held_mib=1.0, spilled_us=68.4))
    ', linear rows times 1.75, 68.4 us for each MiB of weights beyond 1'
    """
    factors = {} if latency.kernels is None else latency.kernels.model_dump()
    terms = [f"{name} rows times {factor:g}" for name, factor in factors.items() if factor != 1]
    if latency.held_mib is not None:
        terms.append(f"{latency.spilled_us:g} us for each MiB of weights beyond {latency.held_mib:g}")
    return "".join(f", {term}" for term in terms)


def check_command(profile: str, networks: Sequence[str], *options: str) -> str:
    """The command that checks a profile on networks.

    Args:
        profile: Its name or folder.
        networks: As the user typed them.
        options: Further ones.
    """
    asked = [word for name in networks for word in ("--for", name)]
    return shlex.join(["hwprune", "profile", "check", profile, *asked, *options])


def name_and_shape(spec: str, where: str) -> tuple[str, tuple[int, int, int]]:
    """The name and the shape of an image in ``MODEL[:CxHxW]``.

    Args:
        spec: What the user typed.
        where: How, for messages.

    Raises:
        InputError: If the shape is malformed.
    """
    name, separator, text = spec.rpartition(":")
    if not separator or not text[:1].isdigit():
        name, text = spec, DEFAULT_SHAPE
    try:
        channels, height, width = (int(size) for size in text.split("x"))
    except ValueError as error:
        raise InputError(
            "the shape of the image is malformed", where=where, expected="CxHxW", got=text
        ) from error
    if min(channels, height, width) < 1:
        raise InputError("no such image", where=where, expected="at least 1x1x1", got=text)
    return name, (channels, height, width)


def as_text(shape: tuple[int, int, int]) -> str:
    """The shape of an image as it is typed.

    >>> as_text((3, 32, 64))
    '3x32x64'
    """
    return "x".join(map(str, shape))
