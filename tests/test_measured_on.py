"""What is told of measurements on the device itself and on others."""

from __future__ import annotations

from typing import Any

import pytest
from measured_here import HERE

from hwprune.measured_on import COLUMNS, measured_columns, measured_rows, stand_in_for, stand_in_lines


def entry(vendor: str, model: str, isa: str, /, **facts: Any) -> dict[str, Any]:
    hardware = {"vendor": vendor, "model": model, "isa": isa, "cores": 4}
    return {"device": "d", "hardware": hardware, "environment": {**HERE, **facts}}


@pytest.mark.parametrize(
    ("hardware", "wanted"),
    [
        (("AMD", "AMD EPYC", "avx2"), ""),
        (("any", "", "avx2"), ""),
        (("any", "", ""), ""),
        (("any", "", "neon"), "any processor (neon)"),
        (("Arm", "Cortex-A76", "neon"), "Arm Cortex-A76 (neon)"),
        (("AMD", "AMD Ryzen", "avx2"), "AMD Ryzen (avx2)"),
        (("any", "any x86, standing in for a DSP", ""), "any x86, standing in for a DSP"),
    ],
)
def test_another_model_or_instruction_set_stands_in(hardware: tuple[str, str, str], wanted: str) -> None:
    assert stand_in_for(entry(*hardware)) == wanted


def test_a_board_that_does_not_tell_its_model_is_known_by_its_instruction_set() -> None:
    board = {"cpu": "aarch64", "isa": "neon", "os": "Linux aarch64"}
    assert stand_in_for(entry("Arm", "Cortex-A76", "neon", **board)) == ""
    assert stand_in_for(entry("Intel", "Xeon", "avx512", **board)) == "Intel Xeon (avx512)"


def test_a_line_for_every_device_that_was_not_there() -> None:
    other = entry("Arm", "Cortex-A76", "neon")
    lines = stand_in_lines([other, other, entry("any", "", "avx2")])
    assert lines == ["d: measured on AMD EPYC (avx2), not on Arm Cortex-A76 (neon): a stand-in"]
    del other["hardware"], other["environment"]["batch"]  # as older versions left it
    assert stand_in_lines([other]) == []
    assert measured_columns(other)["batch"] == ""


def test_equal_measurements_are_one_row() -> None:
    first, later = entry("any", "", "avx2"), entry("any", "", "avx2", date="2026-01-02")
    rows = measured_rows([first, first, later])
    assert [row[-1] for row in rows] == ["2026-01-01", "2026-01-02"]
    assert rows[0][:4] == ("d", "any processor (avx2)", "AMD EPYC (avx2)", "onnxruntime 1.2")
    assert list(measured_columns(first)) == list(COLUMNS)
