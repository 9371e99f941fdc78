"""A picture of a plan: what hangs together in a network, and what each part of it could free."""

from __future__ import annotations

import itertools
import textwrap

from hwprune import charts
from hwprune.plan import Plan, PlanRow

#: Longest text beside a box, in characters.
_LENGTH = 52


def coupling(plan: Plan, title: str) -> str:
    """The axes of a network from top to bottom, joined where a layer reads one and makes the other.

    Args:
        plan: Before training.
        title: Of the picture.

    Returns:
        An ``<svg>`` element, with a name and a width for every axis and a bar for the latency it could free.
    """
    boxes = [charts.Box(row.name, _detail(row), row.freed_us, strong=row.reason is None) for row in plan.rows]
    return charts.box_chart(boxes, links(plan), value_label="could free (us, an estimate)", title=title)


def links(plan: Plan) -> list[tuple[int, int]]:
    """Pairs of rows that have a layer in common: it reads one and makes the other."""
    return [
        (first, second)
        for (first, one), (second, other) in itertools.combinations(enumerate(plan.rows), 2)
        if set(one.tied) & set(other.tied)
    ]


def _detail(row: PlanRow) -> str:
    if row.reason:
        return textwrap.shorten(
            f"{row.width_before} {row.unit}, kept: {row.reason}", _LENGTH, placeholder="..."
        )
    tied = len([layer for layer in row.tied if layer != row.name])
    return f"{row.width_before} {row.unit} in steps of {row.align}, with {tied} other layers"
