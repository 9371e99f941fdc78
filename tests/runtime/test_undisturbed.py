"""The location of durations some of which were disturbed."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.runtime.undisturbed import undisturbed


@pytest.mark.parametrize("disturbed", [0.0, 0.3, 0.6, 0.8])
def test_disturbed_runs_do_not_move_it(disturbed: float) -> None:
    generator = np.random.default_rng(0)
    alone = generator.normal(100.0, 0.5, 400)
    slow = generator.normal(125.0, 8.0, round(400 * disturbed / (1 - disturbed)))
    assert undisturbed(np.concatenate([alone, slow])) == pytest.approx(99.0, rel=0.005)


def test_one_run_of_a_few_counts() -> None:
    assert undisturbed([7.0, 4.0, 5.0]) == 4.0


def test_the_fastest_twentieth_is_averaged() -> None:
    assert undisturbed([9.0] * 38 + [4.0, 5.0]) == 4.5
