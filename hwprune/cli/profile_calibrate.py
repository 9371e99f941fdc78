"""The command ``hwprune profile calibrate``: fit overhead and factor of a profile anew."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from hwprune.cli.common import told
from hwprune.cli.profile_build import without_folders
from hwprune.cli.profile_check import check_here, covered_by
from hwprune.cli.profile_networks import (
    DEFAULT_NETWORKS,
    check_command,
    further_terms,
    make_networks,
    networks_option,
    passes_option,
)
from hwprune.device.library import read_profile
from hwprune.device.predict import table_of
from hwprune.errors import ProfileError
from hwprune.runtime.calibration import recalibrate
from hwprune.sampled_networks import for_calibration


@click.command("calibrate")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@networks_option
@click.option("--allow-busy", is_flag=True, help="Measure on a busy machine too; the profile will say so.")
@passes_option
@told
def calibrate(folder: Path, networks: Sequence[str], allow_busy: bool, passes: int) -> None:
    """Fit factor and overhead of a profile to whole networks once more; its rows stay.

    For a profile whose check shows predictions that are all too high, or all too low: something disturbed
    the machine while the networks were timed that its calibration is fitted to.

    Example: hwprune profile calibrate my-device --passes 2
    """
    profile = read_profile(folder)
    table_of(profile)
    if not os.access(folder, os.W_OK):
        raise ProfileError("the profile cannot be written", where=folder, expected="a folder to write into")
    check_here(profile)
    covered = covered_by(make_networks(networks or DEFAULT_NETWORKS), profile, required=bool(networks))
    drawn = for_calibration(covered, profile)
    console = Console(highlight=False, emoji=False)

    def notify(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    written = recalibrate(
        profile,
        {name: (network.model, network.example) for name, network in drawn.items()},
        " ".join(["hwprune", *without_folders(sys.argv[1:])]),
        notify,
        passes=passes,
        allow_busy=allow_busy,
    )
    before, after = profile.latency, written.latency
    notify(
        f"{written.name}: calibration {before.calibration:g} -> {after.calibration:g}, "
        f"overhead {before.overhead_us:g} -> {after.overhead_us:g} us{further_terms(after)}\n"
        f"next: {check_command(str(folder), networks)}"
    )
