"""The command ``hwprune profile``: make a device profile on this machine, and see how far it holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import torch
from rich.console import Console

from hwprune import charts
from hwprune.cli.common import json_option, profiles_option, told
from hwprune.cli.progress import observing
from hwprune.device.predict import table_of
from hwprune.device.profile import (
    PROFILE_FILE,
    DeviceProfile,
    Hardware,
    LatencySpec,
    Provenance,
    Rule,
    RuntimeSpec,
    load_profile,
)
from hwprune.errors import ArtifactError, InputError, MissingRowError, ProfileError
from hwprune.files import write_text
from hwprune.graph.trace import trace_operators
from hwprune.profile_check import NetworkError, compare_networks, summarise
from hwprune.profile_pictures import agreement, staircases
from hwprune.runtime.base import REGISTRY
from hwprune.runtime.build import build_profile
from hwprune.runtime.environment import environment, same_hardware
from hwprune.sampled_networks import Network, at_random_widths
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
#: Operators whose channels are pruned; their steps are found by measuring.
_RULES = (
    Rule(op="conv", granularity="channel"),
    Rule(op="conv", groups="depthwise", granularity="channel"),
    Rule(op="conv_transpose", granularity="channel"),
    Rule(op="linear", granularity="channel"),
)
#: Networks that the calibration is fitted to, and the seed of their widths; those of a check differ.
CALIBRATION_NETWORKS, CALIBRATION_SEED = 12, 1_000_003


@click.group()
def profile() -> None:
    """Make a device profile on this machine, or check one."""


networks_option = click.option(
    "--for",
    "networks",
    multiple=True,
    metavar="MODEL[:CxHxW]",
    help=f"Networks to cover: built-in names or package.module:callable, with the shape of an image "
    f"(default {DEFAULT_SHAPE}). Default: the built-in networks.",
)


@profile.command("build")
@click.option("--runtime", type=click.Choice(sorted(REGISTRY)), default="onnxruntime", show_default=True)
@click.option("--precision", type=click.Choice(["fp32"]), default="fp32", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images per run.")
@networks_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The profile's folder and name.")
@told
def build(runtime: str, precision: str, threads: int, batch: int, networks: Sequence[str], out: Path) -> None:
    """Measure this machine and write a profile with its latency table.

    Leave the machine idle meanwhile: a reference kernel is timed at the start, in the middle and at the
    end, and nothing is written where it did not take the same time.

    Example: hwprune profile build --runtime onnxruntime --for resnet20:3x32x32 --out my-device
    """
    _check_out(out)
    named = make_networks(networks or DEFAULT_NETWORKS)
    spec = RuntimeSpec.model_validate(
        {"kind": runtime, "precision": precision, "threads": threads, "batch": batch}
    )
    console = Console(highlight=False)
    with observing(console) as observer:
        built = build_profile(
            _template(spec),
            {name: (network.model, network.example) for name, network in named.items()},
            lambda local: {
                name: (network.model, network.example)
                for name, network in at_random_widths(named, local, CALIBRATION_NETWORKS, CALIBRATION_SEED)
            },
            out,
            command=" ".join(["hwprune", *_without_folders(sys.argv[1:])]),
            notify=observer.note,
            progress=observer.rows,
        )
    _draw_staircases(built, out, console)
    console.print(
        f"written to {out}/: {len(table_of(built))} rows, calibration {built.latency.calibration:g}, "
        f"overhead {built.latency.overhead_us:g} us, noise {built.provenance.noise:.1%}\n"
        f"next: hwprune profile check {out}",
        markup=False,
        soft_wrap=True,
    )


@profile.command("check")
@click.argument("folder")
@profiles_option
@networks_option
@click.option(
    "--count", type=click.IntRange(min=1), default=48, show_default=True, help="Networks to measure."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of their widths.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw predicted against measured into this SVG file."
)
@json_option
@told
def check(
    folder: str,
    profiles: Path | None,
    networks: Sequence[str],
    count: int,
    seed: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Validate a profile and compare its predictions with measurements of this machine.

    The networks are narrower versions of the covered ones, at random widths that the calibration has not
    seen.

    Example: hwprune profile check profiles/x86-avx2-ort --count 48
    """
    if plot is not None:
        _check_drawable(plot)
    checked = load_profile(folder, profiles)
    console = Console(stderr=as_json, highlight=False)
    if checked.table is None:
        console.print(f"{checked.name} is valid; it is a template without a table, nothing can be compared")
        return
    console.print(f"{checked.name} is valid: {len(checked.table)} rows")
    same, difference = same_hardware(checked)
    if not same:
        raise ProfileError(
            "the predictions cannot be compared: the profile was measured on another machine",
            where=checked.name,
            expected="the machine it was measured on",
            got=difference,
            hint="build one for this machine with: hwprune profile build --out DIR",
        )
    covered = _covered(make_networks(networks or DEFAULT_NETWORKS), checked, required=bool(networks))
    errors = compare_networks(
        checked,
        at_random_widths(covered, checked, count, seed),
        lambda error: console.print(_error_line(error), markup=False, soft_wrap=True),
    )
    if plot is not None:
        write_text(plot, agreement(errors))
    summary = summarise(errors)
    if as_json:
        record = {
            "profile": checked.name,
            "environment": environment(),
            "seed": seed,
            **summary,
            "errors": [{**asdict(error), "error": error.error} for error in errors],
        }
        click.echo(json.dumps(record, indent=2))
        return
    console.print(
        f"{summary['networks']} networks: median error {summary['median']:.1%}, 95 % within "
        f"{summary['p95']:.1%}, worst {summary['worst']:.1%}, median signed {summary['bias']:+.1%}",
        soft_wrap=True,
    )


def _check_drawable(plot: Path) -> None:
    """Raises where a picture could not be drawn or written, before anything is measured."""
    if not charts.available():
        raise InputError("pictures need matplotlib", where="--plot", hint="pip install 'hwprune[report]'")
    if not plot.absolute().parent.is_dir():
        raise InputError(
            "the folder of the picture does not exist", where=plot, expected="an existing folder"
        )


def _draw_staircases(built: DeviceProfile, out: Path, console: Console) -> None:
    if not charts.available():
        console.print("no pictures: they need matplotlib (pip install 'hwprune[report]')", markup=False)
        return
    for family, drawing in staircases(table_of(built).rows).items():
        write_text(out / f"{family}.svg", drawing)


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


def _covered(networks: dict[str, Network], profile: DeviceProfile, *, required: bool) -> dict[str, Network]:
    """The networks whose operators the table has at every narrower width.

    Raises:
        MissingRowError: If there are none, or one is missing where all are required.
    """
    table, covered = table_of(profile), {}
    for name, network in networks.items():
        operators = trace_operators(network.model, network.example)
        if all(table.covers_narrower(operator, profile.steps_for(operator)) for operator in operators):
            covered[name] = network
    absent = networks.keys() - covered.keys()
    if not covered or (required and absent):
        raise MissingRowError(
            f"the table does not cover {', '.join(sorted(absent))}",
            where=profile.name,
            hint="build a profile for it with: hwprune profile build --for MODEL:CxHxW --out DIR",
        )
    return covered


def _template(spec: RuntimeSpec) -> DeviceProfile:
    facts = environment()
    return DeviceProfile(
        schema=1,
        name="template",
        hardware=Hardware(vendor="any", model="", isa=str(facts["isa"]), cores=int(facts["cores"])),
        runtime=spec,
        rule=_RULES,
        latency=LatencySpec(),
        provenance=Provenance(source="template"),
    )


def _check_out(out: Path) -> None:
    """Raises where the folder holds something that is no profile."""
    if out.is_dir() and any(out.iterdir()) and not (out / PROFILE_FILE).is_file():
        raise ArtifactError(
            "the output folder exists and is no profile",
            where=out,
            expected=f"no such folder, an empty one, or one with {PROFILE_FILE}",
            hint="name another one with --out",
        )
    if out.exists() and not out.is_dir():
        raise ArtifactError("the output folder is a file", where=out, expected="a folder or nothing")


def _without_folders(arguments: Sequence[str]) -> list[str]:
    """The command line with absolute paths cut to their last part: a profile is read on other machines."""
    return [Path(argument).name if argument.startswith("/") else argument for argument in arguments]


def _error_line(error: NetworkError) -> str:
    return (
        f"{error.name:32s} predicted {error.predicted_us:9.1f} us, measured {error.measured_us:9.1f} us, "
        f"error {error.error:+6.1%}"
    )
