"""What runs came to, over the seeds: one row per contender and target."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from journal import Outcome, Run
from latency import TOLERANCE

from hwprune.runtime.timing import Timing

#: Landed, within the noise of two measurements.
NOISE = 0.01
#: Whom all others are compared with, seed by seed: the first of them that ran.
REFERENCES = ("hwprune-distil", "hwprune")


@dataclass(frozen=True, slots=True)
class Network:
    """A network that was timed.

    Attributes:
        run: What made it.
        outcome: What that came to.
        timing: Of the exported network.
        dense: Accuracy of the dense network of the same seed.
        speedup: How many times faster than that, undisturbed.
    """

    run: Run
    outcome: Outcome
    timing: Timing
    dense: float
    speedup: float


@dataclass(frozen=True)
class Row:
    """A contender at a target over the seeds.

    Attributes:
        name: The contender.
        target: How many times faster than dense; 1 for the dense network.
        networks: Those of the seeds that came to something.
        asked: Number of seeds that were asked for.
        reference: Seed to the accuracy of the one of :data:`REFERENCES` at this target; nothing for itself.
    """

    name: str
    target: float
    networks: Sequence[Network]
    asked: int
    reference: Mapping[int, float]

    @cached_property
    def accuracies(self) -> list[float]:
        """In percent, by seed."""
        return [100 * network.outcome.accuracy for network in self.networks]

    @property
    def lost(self) -> list[float]:
        """Points lost against the dense network of the same seed."""
        return [100 * (network.dense - network.outcome.accuracy) for network in self.networks]

    @property
    def ahead(self) -> list[float]:
        """Points ahead of the reference with the same seed, where both came to something."""
        return [
            100 * (network.outcome.accuracy - self.reference[network.run.seed])
            for network in self.networks
            if network.run.seed in self.reference
        ]

    @property
    def missed(self) -> int:
        """Seeds whose network is slower than was asked for, or faster by more than the tolerance."""
        low, high = self.target * (1 - NOISE), self.target * (1 + TOLERANCE + NOISE)
        return sum(self.target > 1 and not low <= network.speedup <= high for network in self.networks)

    def mean(self, of: Callable[[Outcome], float]) -> float:
        """Mean over the seeds."""
        return statistics.mean(float(of(network.outcome)) for network in self.networks)

    @property
    def latency_us(self) -> float:
        """Mean undisturbed latency."""
        return statistics.mean(network.timing.undisturbed_us for network in self.networks)


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; ``None`` where a single value has none."""
    return statistics.stdev(values) if len(values) > 1 else None


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; ``None`` where a single value has none.

    >>> standard_error([1.0, 3.0]), standard_error([1.0])
    (1.0, None)
    """
    spread = deviation(values)
    return None if spread is None else spread / len(values) ** 0.5


def rows_of(outcomes: Mapping[Run, Outcome], timings: Mapping[Run, Timing], seeds: int) -> list[Row]:
    """A row per target and contender: targets in order, best accuracy first.

    Args:
        outcomes: All runs that were asked for.
        timings: Of those that came to something.
        seeds: How many were asked for.
    """
    together: dict[tuple[float, str], list[Run]] = {}
    for run in outcomes:
        together.setdefault((run.speedup, run.contender), []).append(run)
    reference = next(
        (name for name in REFERENCES if any(run.contender == name for run in outcomes)), REFERENCES[0]
    )
    rows = [
        Row(
            name,
            target,
            [_network(run, outcomes, timings) for run in runs if run in timings],
            seeds,
            {}
            if name == reference
            else _accuracies(outcomes, timings, together.get((target, reference), ())),
        )
        for (target, name), runs in together.items()
        if any(run in timings for run in runs)
    ]
    return sorted(rows, key=lambda row: (row.target, -statistics.mean(row.accuracies)))


def _network(run: Run, outcomes: Mapping[Run, Outcome], timings: Mapping[Run, Timing]) -> Network:
    speedup = timings[run.dense].undisturbed_us / timings[run].undisturbed_us
    return Network(run, outcomes[run], timings[run], outcomes[run.dense].accuracy, speedup)


def _accuracies(
    outcomes: Mapping[Run, Outcome], timings: Mapping[Run, Timing], runs: Iterable[Run]
) -> dict[int, float]:
    return {run.seed: outcomes[run].accuracy for run in runs if run in timings}
