"""What the numbers of a report were measured on, and whether that is the device that they are told of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

#: Columns about a measurement, and where its environment has them.
COLUMNS = {
    "measured_on": "cpu",
    "isa": "isa",
    "runtime": "runtime",
    "runtime_version": "runtime_version",
    "precision": "precision",
    "threads": "threads",
    "batch": "batch",
    "date": "date",
}


def measured_columns(record: Record) -> dict[str, Any]:
    """What a network was measured on and in, as columns of a table.

    Args:
        record: With the ``environment`` of its measurement; those of older versions know fewer facts.
    """
    return {column: record["environment"].get(fact, "") for column, fact in COLUMNS.items()}


def stand_in_for(entry: Record) -> str:
    """The hardware that a variant is for, where it was measured on other hardware; nothing where it was not.

    Args:
        entry: Of the manifest, with the ``hardware`` of the device's profile: those of older versions have
            none, and nothing is told of them. A profile that leaves the model or the instruction set open
            is for any.
    """
    hardware, facts = entry.get("hardware"), entry["environment"]
    if hardware is None:
        return ""
    differs = hardware["isa"] and hardware["isa"] != facts["isa"]
    # Boards do not always tell their model; the machine's type stands in its place.
    if facts["cpu"] not in facts["os"].split():
        differs = differs or (hardware["model"] and hardware["model"] != facts["cpu"])
    return described(hardware) if differs else ""


def described(hardware: Record) -> str:
    """Hardware in words.

    >>> described({"vendor": "Arm", "model": "Cortex-A76", "isa": "neon", "cores": 4})
    'Arm Cortex-A76 (neon)'
    >>> described({"vendor": "any", "model": "", "isa": "neon", "cores": 1})
    'any processor (neon)'
    """
    vendor, model, isa = hardware["vendor"], hardware["model"] or "processor", hardware["isa"]
    name = model if model.startswith(vendor) else f"{vendor} {model}"
    return f"{name} ({isa})" if isa else name


def stand_in_lines(entries: Sequence[Record]) -> list[str]:
    """A line for every device that other hardware stood in for.

    Args:
        entries: Variants that were measured.
    """
    lines = [
        f"{entry['device']}: measured on {entry['environment']['cpu']} ({entry['environment']['isa']}), "
        f"not on {wanted}: a stand-in"
        for entry in entries
        if (wanted := stand_in_for(entry))
    ]
    return list(dict.fromkeys(lines))


def measured_rows(entries: Sequence[Record]) -> list[tuple[str, ...]]:
    """Every way in which variants were measured.

    Args:
        entries: Variants that were measured.

    Returns:
        Device, its hardware, processor, runtime, precision, threads, batch and date of each.
    """
    rows = []
    for entry in entries:
        hardware, facts = entry.get("hardware"), measured_columns(entry)
        rows.append(
            (
                entry["device"],
                described(hardware) if hardware else "",
                f"{facts['measured_on']} ({facts['isa']})",
                f"{facts['runtime']} {facts['runtime_version']}",
                *(str(facts[name]) for name in ("precision", "threads", "batch", "date")),
            )
        )
    return list(dict.fromkeys(rows))
