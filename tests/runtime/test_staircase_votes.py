"""Which of several measured staircases counts."""

import pytest

from hwprune.device.profile import RuntimeSpec
from hwprune.device.rows import Row
from hwprune.device.steps import Steps
from hwprune.runtime import staircase

PROBE = staircase.PROBES["conv", None]
SPEC = RuntimeSpec(kind="onnxruntime")
EIGHT = [Steps(8, period, 4) for period in (8, 16, 32, 64)]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([EIGHT[0], EIGHT[1], EIGHT[0], EIGHT[0]], EIGHT[0]),
        ([Steps(), Steps(), EIGHT[0], EIGHT[0]], EIGHT[0]),  # what is too fine twice is looked at again
        ([Steps(2), Steps(4), *EIGHT[:2], *EIGHT], EIGHT[3]),
        ([EIGHT[0], EIGHT[1], EIGHT[0], EIGHT[1], EIGHT[0], Steps(16), EIGHT[1], Steps()], Steps()),
    ],
)
def test_two_in_a_row_decide_then_the_last_where_they_agree_on_the_step(
    found: list[Steps], expected: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter(found)
    monkeypatch.setattr(staircase, "_find_once", lambda *_arguments: next(measured))
    assert staircase.find_steps(PROBE, SPEC) == expected


def test_the_least_of_several_measurements_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []

    def disturbed(operators, _spec):  # type: ignore[no-untyped-def]
        """Steps of 16, and in every call others of the operators take half as long again."""
        turns.append(len(turns))
        return [
            Row(each, 10.0 * -(-each.out_channels // 16) * (1.5 if (at + turns[-1] // 3) % 3 else 1.0))
            for at, each in enumerate(operators)
        ]

    monkeypatch.setattr(staircase, "measure_operators", disturbed)
    assert staircase.find_steps(PROBE, SPEC).align == 16
