"""The picture of a plan."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from hwprune.plan import Plan, PlanRow
from hwprune.plan_picture import coupling, links

PLAN = Plan(
    (
        PlanRow("stem", 16, 16, 8, ("stem", "norm", "deep"), None, staircase=((8, 3.0), (16, 5.5))),
        PlanRow("deep", 32, 32, 8, ("deep", "head"), "a softmax over it"),
        PlanRow("head<1>", 10, 10, 10, ("head",), "network output"),
    )
)


def test_every_axis_is_drawn_with_its_width_and_what_it_could_free() -> None:
    pytest.importorskip("matplotlib")
    drawn = coupling(PLAN, "a & b")
    said = "".join(ElementTree.fromstring(drawn).itertext())
    assert "stem: 16 channels in steps of 8, with 2 other layers" in said
    assert "deep: 32 channels, kept: a softmax over it" in said
    assert "head<1>: 10 channels, kept: network output" in said
    assert "2.5" in said


def test_axes_are_joined_by_the_layers_that_they_share() -> None:
    assert links(PLAN) == [(0, 1), (1, 2)]
