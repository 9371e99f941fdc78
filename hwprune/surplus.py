"""A network that came out faster than was asked for: by how much, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hwprune.closed_loop import MAX_TURNS

#: The part of what was asked for by which a network may be faster without a word.
UNMENTIONED = 0.15


def surplus_line(record: Mapping[str, Any]) -> str | None:
    """Says by how much a network is faster than was asked for, and why.

    Args:
        record: The contents of ``report.json``.

    Returns:
        One line; ``None`` where the target is a number of groups, or about met.
    """
    kind, value = record["target"]["kind"], record["target"]["value"]
    match kind:
        case "speedup":
            surplus = record["speedup"] / value
        case "latency_us":
            surplus = value / record["slim"]["latency_us"]["median"]
        case _:
            return None
    if surplus <= 1 + UNMENTIONED:
        return None
    reason = _reason(record)
    return f"{surplus:.2f} times as fast as was asked for{f': {reason}' if reason else ''}"


def _reason(record: Mapping[str, Any]) -> str:
    """Why it wastes so much; nothing where that is not known, since no turn was measured."""
    turns, groups = record["turns"], record["groups"]
    if groups["kept"] == groups["total"]:
        return "the dense network is fast enough"
    chosen = next((turn for turn in turns if turn["limit_us"] == groups["budget"]), None)
    if chosen is None:
        return ""
    part = chosen["measured_us"] / chosen["allowed_us"]
    if part * (1 + UNMENTIONED) > 1:
        return f"when it was chosen, it took {part:.0%} of what was allowed"
    if all(turn["measured_us"] <= turn["allowed_us"] for turn in turns):
        return "what was left when the survivors were chosen is that fast"
    if len(turns) >= MAX_TURNS:
        return f"the {MAX_TURNS} turns on the device were used up"
    return "no network that is safely fast enough was found between it and those that are too slow"
