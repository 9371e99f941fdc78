"""The command ``hwprune profile build``: make a device profile on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from hwprune import charts
from hwprune.cli.common import telling_how_to_go_on, told
from hwprune.cli.profile_networks import (
    DEFAULT_NETWORKS,
    check_command,
    further_terms,
    make_networks,
    networks_option,
    passes_option,
)
from hwprune.cli.progress import observing
from hwprune.device.library import is_name
from hwprune.device.predict import table_of
from hwprune.device.profile import (
    PROFILE_FILE,
    DeviceProfile,
    Hardware,
    LatencySpec,
    Provenance,
    Rule,
    RuntimeSpec,
)
from hwprune.errors import ArtifactError, InputError
from hwprune.files import TEMPORARY_FILES, write_text
from hwprune.profile_pictures import staircases
from hwprune.runtime.base import REGISTRY, SKIPPING_ZEROS
from hwprune.runtime.build import TABLE_FILE, BuildRequest, build_profile
from hwprune.runtime.calibration import CALIBRATION_FILE
from hwprune.runtime.environment import environment, hardware_for
from hwprune.sampled_networks import for_calibration

#: Operators whose channels are pruned; their steps are found by measuring.
_RULES = (
    Rule(op="conv", granularity="channel"),
    Rule(op="conv", groups="depthwise", granularity="channel"),
    Rule(op="conv_transpose", granularity="channel"),
    Rule(op="linear", granularity="channel"),
)
#: Operators whose weights of zero a runtime may skip.
_ZERO_RULES = (Rule(op="conv", granularity="weight"), Rule(op="linear", granularity="weight"))


class Threads(click.IntRange):
    """A number of threads, or ``all`` for as many as this machine has cores."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        return super().convert(int(environment()["cores"]) if value == "all" else value, param, ctx)


@click.command("build")
@click.option("--runtime", type=click.Choice(sorted(REGISTRY)), default="onnxruntime", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16: operators and networks are converted (TensorRT); int8: quantised (ONNX Runtime, OpenVINO).",
)
@click.option(
    "--threads", type=Threads(min=1), default=1, show_default=True, help="A number, or all cores: all."
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images per run.")
@networks_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The profile's folder and name.")
@click.option("--anew", is_flag=True, help="Forget an unfinished build, and replace a profile that is there.")
@click.option("--allow-busy", is_flag=True, help="Measure on a busy machine too; the profile will say so.")
@passes_option
@told
def build(
    runtime: str,
    precision: str,
    threads: int,
    batch: int,
    networks: Sequence[str],
    out: Path,
    anew: bool,
    allow_busy: bool,
    passes: int,
) -> None:
    """Measure this machine and write a profile with its latency table.

    Leave the machine idle meanwhile: a reference kernel is timed after every measurement, which does not
    count where the kernel took longer than usual. An interrupted build goes on with the same
    command. A profile that is there already gets what the networks need besides.

    Example: hwprune profile build --runtime onnxruntime --for resnet20:3x32x32 --out my-device
    """
    _check_out(out)
    named = make_networks(networks or DEFAULT_NETWORKS)
    spec = RuntimeSpec.model_validate(
        {"kind": runtime, "precision": precision, "threads": threads, "batch": batch}
    )
    request = BuildRequest(
        _template(spec),
        {name: (network.model, network.example) for name, network in named.items()},
        lambda local: {
            name: (network.model, network.example) for name, network in for_calibration(named, local).items()
        },
        out,
        command=" ".join(["hwprune", *without_folders(sys.argv[1:])]),
        anew=anew,
        allow_busy=allow_busy,
        passes=passes,
    )
    console = Console(highlight=False, emoji=False)
    with telling_how_to_go_on(without="--anew"), observing(console) as observer:
        built = build_profile(request, observer.note, observer.rows)
    _draw_staircases(built, out, console)
    console.print(
        f"{out}/: {len(table_of(built))} rows, calibration {built.latency.calibration:g}, "
        f"overhead {built.latency.overhead_us:g} us{further_terms(built.latency)}, "
        f"noise {built.provenance.noise:.1%}\n"
        f"next: {check_command(str(out), networks)}",
        markup=False,
        soft_wrap=True,
    )


def _draw_staircases(built: DeviceProfile, out: Path, console: Console) -> None:
    if not charts.available():
        console.print("no pictures: they need matplotlib (pip install 'hwprune[report]')", markup=False)
        return
    for family, drawing in staircases(table_of(built).rows).items():
        write_text(out / f"{family}.svg", drawing)


def _template(spec: RuntimeSpec) -> DeviceProfile:
    here = hardware_for(spec)
    return DeviceProfile(
        schema=1,
        name="template",
        hardware=Hardware(vendor="any", model="", isa=here.isa, cores=here.cores),
        runtime=spec,
        rule=(*_RULES, *(_ZERO_RULES if spec.kind in SKIPPING_ZEROS else ())),
        latency=LatencySpec(),
        provenance=Provenance(source="template"),
    )


def _check_out(out: Path) -> None:
    """Raises where the folder holds something that is no profile, or cannot be one."""
    if out.exists() and not out.is_dir():
        raise ArtifactError("the output folder is a file", where=out, expected="a folder or nothing")
    if not is_name(out.absolute().name):
        raise InputError(
            "the output folder's name, which is the profile's, is no name",
            where=out,
            expected="letters, digits, '.', '_' and '-', a letter or digit first",
        )
    if not out.is_dir() or (out / PROFILE_FILE).is_file():
        return
    # A build that was killed while it wrote the profile has left the table behind.
    left = (TABLE_FILE, CALIBRATION_FILE)
    strangers = [item for item in out.iterdir() if item.name not in left and not item.match(TEMPORARY_FILES)]
    if strangers:
        raise ArtifactError(
            "the output folder exists and is no profile",
            where=out,
            expected=f"no such folder, an empty one, or one with {PROFILE_FILE}",
            got=f"{strangers[0].name}{', ...' if len(strangers) > 1 else ''}",
            hint="name another one with --out",
        )


def without_folders(arguments: Sequence[str]) -> list[str]:
    """The command line with absolute paths cut to their last part: a profile is read on other machines."""
    return [Path(argument).name if argument.startswith("/") else argument for argument in arguments]
