"""The command ``hwprune profile check``: see how far the predictions of a profile hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from hwprune import charts
from hwprune.cli.common import json_option, profiles_option, told
from hwprune.cli.profile_networks import DEFAULT_NETWORKS, make_networks, networks_option
from hwprune.device.predict import table_of
from hwprune.device.profile import DeviceProfile, load_profile
from hwprune.errors import InputError, MissingRowError, ProfileError
from hwprune.files import write_text
from hwprune.graph.trace import trace_operators
from hwprune.profile_check import NetworkError, compare_networks, summarise
from hwprune.profile_pictures import agreement
from hwprune.runtime.environment import environment, same_hardware
from hwprune.sampled_networks import Network, at_random_widths


@click.command("check")
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


def _error_line(error: NetworkError) -> str:
    return (
        f"{error.name:32s} predicted {error.predicted_us:9.1f} us, measured {error.measured_us:9.1f} us, "
        f"error {error.error:+6.1%}"
    )
