"""What a network came to, against what was asked for: faster or too slow, by how much and why, or useless."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hwprune.closed_loop import MAX_TURNS

Record = Mapping[str, Any]

#: The part of what was asked for by which a network may be faster without a word.
UNMENTIONED = 0.15
#: A network knows nothing any more that has less than this part of what the dense one has over guessing.
KNOWS_NOTHING = 0.1


def guessing_line(record: Record) -> str | None:
    """Says that a network does little better than guessing, where the dense one does.

    Args:
        record: The contents of ``report.json``; those of older versions know no number of classes.

    Returns:
        One line; ``None`` where it knows more.
    """
    classes, slim, dense = record.get("classes"), record["slim"]["accuracy"], record["dense"]["accuracy"]
    if not classes or dense <= 1 / classes or slim - 1 / classes >= KNOWS_NOTHING * (dense - 1 / classes):
        return None
    return (
        f"the slim network, right in {slim:.2%}, does little better than guessing among {classes} classes: "
        "ask for less, or train for longer"
    )


def surplus_line(record: Record) -> str | None:
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
    reason = _why_so_fast(record)
    return f"{surplus:.2f} times as fast as was asked for{f': {reason}' if reason else ''}"


def shortfall_line(record: Record) -> str | None:
    """Says by how much a network misses its target, and why.

    Args:
        record: The contents of ``report.json``.

    Returns:
        One line; ``None`` where the target is met.
    """
    if record["target_met"]:
        return None
    kind, value = record["target"]["kind"], record["target"]["value"]
    match kind:
        case "speedup":
            amount = f"measured speed-up {record['speedup']:.3f} where {value:g} was asked for"
        case "latency_us":
            median = record["slim"]["latency_us"]["median"]
            amount = f"measured latency {median:.2f} us where {value:g} us was asked for"
        case _:
            groups = record["groups"]
            amount = f"{groups['kept']} groups were kept where {groups['budget']} were asked for"
    reason = _why_too_slow(record)
    return f"{amount}; {reason}" if reason else amount


def _chosen(record: Record) -> Record | None:
    """The turn whose network was chosen; ``None`` where no turn tells."""
    turns, groups = record["turns"], record["groups"]
    return next((turn for turn in turns if turn["limit_us"] == groups["budget"]), None)


def _of_the_loop(record: Record) -> list[Record]:
    """The turns in which networks were chosen, without those that were finished."""
    return [turn for turn in record["turns"] if not turn.get("finished")]


def _why_so_fast(record: Record) -> str:
    """Why it wastes so much; nothing where that is not known, since no turn was measured."""
    turns, groups = _of_the_loop(record), record["groups"]
    if groups["kept"] == groups["total"]:
        return "the dense network is fast enough"
    chosen = _chosen(record)
    if chosen is None:
        return ""
    if chosen.get("finished"):
        return "an earlier network of it missed the target when it was finished, and more was taken out"
    part = chosen["measured_us"] / chosen["allowed_us"]
    if part * (1 + UNMENTIONED) > 1:
        return f"when it was chosen, it took {part:.0%} of what was allowed"
    if all(turn["measured_us"] <= turn["allowed_us"] for turn in turns):
        return "what was left when the survivors were chosen is that fast"
    if len(turns) >= MAX_TURNS:
        return f"the {MAX_TURNS} turns on the device were used up"
    return "no network that is safely fast enough was found between it and those that are too slow"


def _why_too_slow(record: Record) -> str:
    """Why it is too slow, by the turns or only in the end; nothing where that is not known."""
    turns, chosen = _of_the_loop(record), _chosen(record)
    if chosen is None:
        return ""
    took = f"took {chosen['measured_us']:.1f} us of {chosen['allowed_us']:.1f} us allowed"
    if chosen.get("finished"):
        times = sum(turn.get("finished", False) for turn in record["turns"])
        while_disturbed = ", while something disturbed the machine" if chosen.get("disturbed") else ""
        return (
            f"finished and timed {times} times, in this run or an earlier one, with more taken out each "
            f"time, it {took} in the end{while_disturbed}"
        )
    if chosen["measured_us"] <= chosen["allowed_us"]:
        return f"when it was chosen, it {took}: the final measurement came out slower"
    # Where none is fast enough, the fastest is chosen.
    which = "the only network tried" if len(turns) == 1 else f"the fastest of {len(turns)} networks tried"
    if len(turns) >= MAX_TURNS:
        return f"{which} {took}, and the {MAX_TURNS} turns on the device were used up"
    return f"{which} {took}, and nothing faster was left to choose"
