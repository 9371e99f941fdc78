"""The command ``hwprune devices``: which profiles there are, and what one says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from hwprune.cli.common import answer, json_option, profiles_option, told
from hwprune.device.library import find_profiles, load_profile
from hwprune.device.profile import DeviceProfile, Provenance


@click.command()
@click.argument("name", required=False)
@profiles_option
@json_option
@told
def devices(name: str | None, profiles: Path | None, as_json: bool) -> None:
    """List the device profiles, or show one in full.

    Example: hwprune devices x86-avx512-ort
    """
    if name is not None:
        profile = load_profile(name, profiles)
        record = profile_record(profile)
        if as_json:
            answer(record)
        else:
            click.echo(_indented(record))
        return
    found = find_profiles(profiles)
    if as_json:
        answer({"devices": [profile_record(profile) for profile in found]})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "hardware", "runtime", "precision", "granularity", "measured"):
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for profile in found:
        runtime, hardware = profile.runtime, profile.hardware
        table.add_row(
            profile.name,
            hardware.model or f"any {hardware.isa or 'CPU'}",
            f"{runtime.kind}, {runtime.threads} thread{'s' if runtime.threads > 1 else ''}",
            runtime.precision,
            ", ".join(dict.fromkeys(rule.granularity for rule in profile.rules)),
            _measured(profile.provenance),
        )
    Console().print(table)


def _measured(provenance: Provenance) -> str:
    """When a table was measured, or what it is instead; an estimate has a date, too."""
    if provenance.source != "measured":
        return f"no ({provenance.source})"
    return provenance.date or "yes"


def profile_record(profile: DeviceProfile) -> dict[str, Any]:
    """A profile as JSON, with the size of its table."""
    record = profile.model_dump(mode="json", by_alias=True, exclude_none=True)
    rows = list(profile.table) if profile.table is not None else []
    record["table"] = {"rows": len(rows), "operators": sorted({row.operator.kind for row in rows})}
    return record


def _indented(record: dict[str, Any], depth: int = 0) -> str:
    lines = []
    for key, value in record.items():
        pad = "  " * depth
        if isinstance(value, dict):
            lines += [f"{pad}{key}:", _indented(value, depth + 1)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{pad}{key}:"] + [
                f"{pad}  - " + ", ".join(f"{name} {item}" for name, item in entry.items()) for entry in value
            ]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{pad}{key}: {shown}")
    return "\n".join(line for line in lines if line)
