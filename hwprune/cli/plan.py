"""The command ``hwprune plan``: what could be pruned, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from hwprune.branch_scope import BranchScope
from hwprune.channel_scope import ChannelScope
from hwprune.cli.common import json_option, profiles_option, told
from hwprune.cli.profile_networks import make_networks
from hwprune.cli.progress import Lines
from hwprune.compressor import CHANNEL
from hwprune.device.library import load_profile
from hwprune.plan import PlanRow
from hwprune.runtime.environment import local_profile
from hwprune.scope import Request
from hwprune.targets import Keep

#: Granularities whose groups have a latency of their own before anything is trained.
PLANNED: dict[str, type[ChannelScope | BranchScope]] = {CHANNEL: ChannelScope, "branch": BranchScope}


@click.command("plan")
@click.argument("network", metavar="MODEL[:CxHxW]", default="resnet8:1x8x8")
@click.option("--device", help="Profile name or folder; default: the one of this machine's CPU runtime.")
@click.option(
    "--granularity",
    type=click.Choice(tuple(PLANNED)),
    default=CHANNEL,
    show_default=True,
    help="What leaves.",
)
@profiles_option
@json_option
@told
def plan_command(
    network: str, device: str | None, granularity: str, profiles: Path | None, as_json: bool
) -> None:
    """Show what would leave together, what is pinned and why, and the latency that each of it could free.

    Latencies are estimates from rows measured on this machine; nothing is trained.

    Example: hwprune plan resnet20:3x32x32
    """
    ((name, found),) = make_networks([network]).items()
    profile = load_profile(device, profiles) if device else local_profile(profiles)
    console = Console(stderr=as_json, highlight=False)
    scope = PLANNED[granularity](
        Request(found.model, found.model, found.example, profile, Keep(1.0), (), True, Lines(console).note)
    )
    plan = scope.preview()
    if as_json:
        record = {
            "network": name,
            "device": profile.name,
            "predicted_us": scope.dense_predicted_us,
            "layers": plan.as_records(),
        }
        click.echo(json.dumps(record, indent=2))
        return
    for row in plan.rows:
        console.print(
            _branch_lines(row) if row.unit == "branches" else _axis_lines(row), markup=False, soft_wrap=True
        )
    if scope.dense_predicted_us is not None:
        predicted = f"{scope.dense_predicted_us:.1f} us predicted on {profile.name} (an estimate)"
        console.print(f"{name}: {predicted}", soft_wrap=True)


def _axis_lines(row: PlanRow) -> str:
    if row.reason:
        return f"{row.name}: {row.width_before} channels, kept whole: {row.reason}"
    tied = ", ".join(layer for layer in row.tied if layer != row.name)
    return (
        f"{row.name}: {row.width_before} channels in steps of {row.align}{_freed(row)}\n"
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
