"""The command line: parse, call the pipeline, print."""

from __future__ import annotations

import logging

import click

from hwprune.cli.devices import devices
from hwprune.cli.export import export_command
from hwprune.cli.measure import measure_command
from hwprune.cli.plan import plan_command
from hwprune.cli.profile import profile
from hwprune.cli.prune import prune
from hwprune.cli.report import report_command
from hwprune.cli.variants import variants


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hwprune")
def main() -> None:
    """Make a PyTorch network smaller until it measurably meets a latency target on a device.

    Example: hwprune prune --model resnet20 --data fashion-mnist --speedup 2
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


for command in (
    devices,
    plan_command,
    prune,
    variants,
    measure_command,
    profile,
    export_command,
    report_command,
):
    main.add_command(command)
