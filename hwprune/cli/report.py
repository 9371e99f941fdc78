"""The command ``hwprune report``: one page about a run, or about all variants."""

from __future__ import annotations

from pathlib import Path

import click

from hwprune.cli.common import answer, json_option, told
from hwprune.errors import InputError
from hwprune.variants_page import read_folder


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--csv", "as_csv", is_flag=True, help="Print one line per network as CSV and nothing else.")
@json_option
@told
def report_command(folder: Path, as_csv: bool, as_json: bool) -> None:
    """Write report.html from what prune or variants left in a folder.

    Example: hwprune report hwprune-run
    """
    if as_csv and as_json:
        raise InputError("two outputs are asked for", expected="--csv or --json", got="both")
    found = read_folder(folder)
    if as_json:
        answer(found.record)
    elif as_csv:
        click.echo(found.networks().to_csv(index=False), nl=False)
    else:
        click.echo(f"written to {found.write_page()}")
