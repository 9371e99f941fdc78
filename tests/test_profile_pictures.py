"""Pictures of a table and of its predictions."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from hwprune.device.rows import Row
from hwprune.operators import Operator
from hwprune.profile_check import NetworkError
from hwprune.profile_pictures import agreement, staircases


def row(inputs: int, outputs: int, median_us: float, *, size: int = 8, kernel: int = 3) -> Row:
    return Row(Operator("conv", inputs, outputs, size, size, kernel, kernel, padding=kernel // 2), median_us)


def texts(drawing: str) -> list[str]:
    return [
        "".join(element.itertext())
        for element in ElementTree.fromstring(drawing).iter()
        if element.tag.endswith("text")
    ]


def test_there_is_a_picture_per_family_with_a_curve_per_map_at_full_input() -> None:
    rows = [row(inputs, width, width + inputs) for inputs in (16, 64) for width in (8, 16, 24)]
    rows += [row(32, width, width, size=4) for width in (8, 16, 24)]
    rows += [row(32, width, width, kernel=1) for width in (8, 16)]
    drawn = staircases(rows)
    assert list(drawn) == ["conv-3x3"]  # two widths make no staircase
    shown = texts(drawn["conv-3x3"])
    assert "8x8, 64 inputs" in shown
    assert "4x4, 32 inputs" in shown
    assert not any("16 inputs" in text for text in shown)


def test_a_depthwise_convolution_is_a_family_of_its_own() -> None:
    rows = [
        Row(Operator("conv", width, width, 8, 8, 3, 3, padding=1, groups=width), float(width))
        for width in (8, 16, 24)
    ]
    assert list(staircases(rows)) == ["depthwise-conv-3x3"]


def test_every_network_is_a_cloud_of_its_own() -> None:
    errors = [
        NetworkError(f"{name} {index}", 100.0, 110.0, 0.01) for name in ("a", "b") for index in range(3)
    ]
    drawing = agreement(errors)
    assert {"a", "b", "measured (us)", "predicted (us)"} <= set(texts(drawing))
    assert re.search(r"<svg [^>]*xmlns=", drawing)
