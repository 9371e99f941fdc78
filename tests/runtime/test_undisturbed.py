"""The location of durations some of which were disturbed."""

from __future__ import annotations

import numpy as np
import pytest

from hwprune.runtime.undisturbed import undisturbed, undisturbed_runs


@pytest.mark.parametrize("disturbed", [0.0, 0.3, 0.6, 0.8])
def test_disturbed_runs_do_not_move_it(disturbed: float) -> None:
    generator = np.random.default_rng(0)
    alone = generator.normal(100.0, 0.5, 400)
    slow = generator.normal(125.0, 8.0, round(400 * disturbed / (1 - disturbed)))
    assert undisturbed(np.concatenate([alone, slow])) == pytest.approx(99.0, rel=0.005)


def test_a_few_runs_are_averaged_over_three() -> None:
    assert undisturbed([7.25, 4.0, 5.3, 4.2]) == pytest.approx(4.5)
    assert undisturbed([7.25]) == 7.25


@pytest.mark.parametrize("disturbed", [0.0, 0.4, 0.7])
def test_kernels_that_a_profiler_cut_are_known_to_less_than_a_microsecond(disturbed: float) -> None:
    generator = np.random.default_rng(2)
    true_us = np.array([2.0, 4.3, 7.5, 40.8, 11.9, 3.3, 25.0, 8.1])
    state = 1 + generator.uniform(0.2, 0.8, 100) * (generator.uniform(size=100) < disturbed)
    taken = true_us[:, None] * state * generator.normal(1, 0.01, (8, 100)) + generator.normal(
        0, 0.3, (8, 100)
    )
    chosen = undisturbed_runs(np.floor(taken) + 0.5)
    assert chosen.shape == (8, 20)
    assert chosen.mean(axis=1) == pytest.approx(true_us, abs=0.5)
