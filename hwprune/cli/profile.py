"""The command ``hwprune profile``: make a device profile on this machine, and see how far it holds."""

from __future__ import annotations

import click

from hwprune.cli.profile_build import build
from hwprune.cli.profile_calibrate import calibrate
from hwprune.cli.profile_check import check
from hwprune.cli.profile_compare import compare


@click.group()
def profile() -> None:
    """Make a device profile on this machine, calibrate or check one, or compare two."""


for command in (build, calibrate, check, compare):
    profile.add_command(command)
