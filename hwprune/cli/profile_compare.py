"""The command ``hwprune profile compare``: see how far two tables agree."""

from __future__ import annotations

from pathlib import Path

import click

from hwprune.cli.common import answer, json_option, profiles_option, told
from hwprune.device.agreement import compare_tables
from hwprune.device.library import load_profile
from hwprune.device.predict import table_of


@click.command("compare")
@click.argument("first")
@click.argument("second")
@profiles_option
@json_option
@told
def compare(first: str, second: str, profiles: Path | None, as_json: bool) -> None:
    """Compare the rows that two profiles have in common, for instance those of two builds on one machine.

    Differences are of the second table from the first. Nothing is measured.

    Example: hwprune profile compare profiles/x86-avx2-ort my-device
    """
    one, other = load_profile(first, profiles), load_profile(second, profiles)
    found = compare_tables(table_of(one), table_of(other))
    if as_json:
        answer({"first": one.name, "second": other.name, **found})
        return
    click.echo(
        f"{found['rows']} rows in common, {found['only_first']} in {one.name} alone, {found['only_second']} "
        f"in {other.name} alone; {found['compared']} latencies differ by {found['median']:.1%} in the median "
        f"row, 95 % of rows by at most {found['p95']:.1%}, the worst by {found['worst']:.1%}; "
        f"median signed {found['bias']:+.1%}"
    )
