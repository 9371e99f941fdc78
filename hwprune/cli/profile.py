"""The command ``hwprune profile``: make a device profile on this machine, and see how far it holds."""

from __future__ import annotations

import click

from hwprune.cli.profile_build import build
from hwprune.cli.profile_check import check


@click.group()
def profile() -> None:
    """Make a device profile on this machine, or check one."""


for command in (build, check):
    profile.add_command(command)
