"""Which of several measured staircases counts."""

import pytest

from hwprune.device.profile import RuntimeSpec
from hwprune.device.steps import Steps
from hwprune.runtime import staircase

PROBE = staircase.PROBES["conv", None]
EIGHT = [Steps(8, period, 4) for period in (8, 16, 32, 64)]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([EIGHT[0], Steps(), EIGHT[0]], EIGHT[0]),
        ([EIGHT[2], Steps(16), EIGHT[3], Steps(4), EIGHT[1]], EIGHT[2]),
        ([EIGHT[2], Steps(16), EIGHT[3], Steps(4), Steps(32)], Steps()),
    ],
)
def test_two_that_agree_decide_then_most_that_agree_on_the_step(found, expected, monkeypatch):
    measured = iter(found)
    monkeypatch.setattr(staircase, "_find_once", lambda _probe, _spec: next(measured))
    assert staircase.find_steps(PROBE, RuntimeSpec(kind="onnxruntime")) == expected
