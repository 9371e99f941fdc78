"""``tools/draw_profile.py``: what a page prints, and pictures side by side."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).parent.parent / "docs" / "predictions.md"


def test_the_errors_that_a_page_prints_are_read(load_tool: Callable[[str], ModuleType]) -> None:
    errors = load_tool("draw_profile").printed_errors(PAGE.read_text(encoding="utf-8"))
    assert len(errors) == 24
    assert len({error.name for error in errors}) == 6
    worst = max(errors, key=lambda error: abs(error.error))
    assert (worst.name, worst.predicted_us, worst.measured_us) == ("lenet5 (1x28x28)", 35.3, 30.9)


def test_pictures_stand_side_by_side_and_below_each_other(load_tool: Callable[[str], ModuleType]) -> None:
    picture = '<svg xmlns="http://www.w3.org/2000/svg" width="1.5pt" height="1pt"/>'
    drawn = load_tool("draw_profile").side_by_side({"a": picture, "b < c": picture, "d": picture})
    root = ElementTree.fromstring(drawn)
    places = [(part.get("x"), part.get("y")) for part in root if part.tag.endswith("svg")]
    assert places == [("0", "22"), ("375", "22"), ("0", "282")]
    assert {part.get("width") for part in root if part.tag.endswith("svg")} == {"375"}
    assert [part.text for part in root if part.tag.endswith("text")] == ["a", "b < c", "d"]
    assert re.search(r'viewBox="0 0 750 520"', drawn)
