"""The location of durations some of which were disturbed."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.runtime.undisturbed import undisturbed


@pytest.mark.parametrize("disturbed", [0.0, 0.2, 0.4, 0.6])
def test_disturbed_runs_do_not_move_it(disturbed: float) -> None:
    generator = np.random.default_rng(0)
    alone = generator.normal(100.0, 0.5, 400)
    slow = generator.normal(125.0, 8.0, round(400 * disturbed / (1 - disturbed)))
    assert undisturbed(np.concatenate([alone, slow])) == pytest.approx(100.0, rel=0.01)


def test_durations_cut_to_a_grid_are_averaged_over_the_values_they_take() -> None:
    exact = np.random.default_rng(1).normal(7.5, 0.3, 1000)
    assert undisturbed(np.floor(exact) + 0.5) == pytest.approx(7.5, abs=0.3)
    assert undisturbed([3.5] * 10 + [4.5] * 2) == 3.5


def test_of_equally_short_intervals_the_fastest_counts() -> None:
    assert undisturbed([1.0, 1.0, 1.0, 9.0, 9.0, 9.0]) == 1.0


@pytest.mark.parametrize("values", [[4.0], [4.0, 4.0], [4.0, 5.0, 7.0]])
def test_a_few_runs_are_enough(values: list[float]) -> None:
    assert undisturbed(values) == 4.0
