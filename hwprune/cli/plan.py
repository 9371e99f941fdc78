"""The command ``hwprune plan``: what could be pruned, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from hwprune import charts
from hwprune.api import PREVIEWED, preview
from hwprune.cli.common import answer, json_option, profiles_option, told
from hwprune.cli.profile_networks import CLASSES, as_text, name_and_shape
from hwprune.cli.progress import Lines
from hwprune.device.library import load_profile
from hwprune.errors import InputError, MissingPackageError
from hwprune.files import write_text
from hwprune.granularities import CHANNEL
from hwprune.plan import PlanRow
from hwprune.plan_picture import coupling
from hwprune.runtime.environment import local_profile
from hwprune.workloads import make_with_inputs, model_names


@click.command("plan")
@click.argument("network", metavar="MODEL[:CxHxW]", default="resnet8:1x8x8")
@click.option("--device", help="Profile name or folder; default: the one of this machine's CPU runtime.")
@click.option(
    "--granularity",
    type=click.Choice(tuple(PREVIEWED)),
    default=CHANNEL,
    show_default=True,
    help="What leaves.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw what hangs together into this SVG file (needs matplotlib, extra report).",
)
@profiles_option
@json_option
@told
def plan_command(
    network: str,
    device: str | None,
    granularity: str,
    picture: Path | None,
    profiles: Path | None,
    as_json: bool,
) -> None:
    """Show what would leave together, what is pinned and why, and the latency that each of it could free.

    MODEL is a built-in name or package.module:callable; a callable may return a network, or any network and
    what it is called with (a tensor, a sequence or a mapping). Latencies are estimates from rows measured on
    this machine; nothing is trained.

    Example: hwprune plan resnet20:3x32x64
    """
    if picture is not None and not charts.available():
        raise MissingPackageError(
            "pictures need matplotlib",
            where="--picture",
            hint="install it with: pip install 'hwprune[report]'",
        )
    if picture is not None and not picture.absolute().parent.is_dir():
        raise InputError(
            "the folder of the file does not exist", where=picture, expected="an existing folder"
        )
    name, shape = name_and_shape(network, network)
    model, inputs = make_with_inputs(name, shape, classes=CLASSES, seed=0)
    if name in model_names():
        network = f"{name}:{as_text(shape)}"
    profile = load_profile(device, profiles) if device is not None else local_profile(profiles)
    console = Console(stderr=as_json, highlight=False, emoji=False)
    wanted = profile.wanted_for(network)
    plan = preview(model, inputs, wanted, granularity=granularity, notify=Lines(console).note)
    if picture is not None:
        write_text(picture, coupling(plan, f"What hangs together in {network} on {profile.name}"))
    if as_json:
        record = {
            "network": network,
            "device": profile.name,
            "predicted_us": plan.predicted_us,
            "layers": plan.as_records(),
        }
        answer(record)
        return
    for row in plan.rows:
        console.print(
            _branch_lines(row) if row.unit == "branches" else _axis_lines(row), markup=False, soft_wrap=True
        )
    if plan.predicted_us is None:
        predicted = f"not every operator has a price on {profile.name}, so no latency is known"
    else:
        predicted = f"{plan.predicted_us:.1f} us predicted on {profile.name} (an estimate)"
    console.print(f"{network}: {predicted}", soft_wrap=True)


def _axis_lines(row: PlanRow) -> str:
    if row.reason:
        return f"{row.name}: {row.width_before} {row.unit}, kept whole: {row.reason}"
    tied = ", ".join(layer for layer in row.tied if layer != row.name)
    return (
        f"{row.name}: {row.width_before} {row.unit} in steps of {row.align}{_freed(row)}\n"
        f"    cut together with {tied}"
        + (f"\n    constants go into the biases of {', '.join(row.folded)}" if row.folded else "")
    )


def _branch_lines(row: PlanRow) -> str:
    if row.reason:
        return f"{row.name}: a branch that stays: {row.reason}"
    return f"{row.name}: a branch that may leave{_freed(row)}\n    {', '.join(row.tied)}"


def _freed(row: PlanRow) -> str:
    """What would be gained, where it is known."""
    return f", could free {row.freed_us:.1f} us" if row.staircase else ""
