"""One measured row of a latency table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from hwprune.operators import Operator

#: Decimals of the microseconds of a row, measured and written alike.
DECIMALS = 2


@dataclass(frozen=True, slots=True)
class Row:
    """A measured operator.

    Attributes:
        operator: What was measured; its name is empty.
        median_us: Median latency in microseconds, without the session's fixed overhead.
        p10_us: Tenth percentile in microseconds; the median where it is not given.
        p90_us: Ninetieth percentile in microseconds; the median where it is not given.
        runs: Number of timed runs.
        undisturbed_us: Microseconds while nothing else disturbs the machine: what predictions count
            (:func:`hwprune.runtime.undisturbed.undisturbed_runs`); the median where it is not given.
        among: About how many bytes a network goes through between two of its runs, which decides what stays
            in which cache (:func:`~hwprune.device.working_set.size_class`); 0 where it was not noted.
    """

    operator: Operator
    median_us: float
    p10_us: float = -1.0
    p90_us: float = -1.0
    runs: int = 1
    undisturbed_us: float = -1.0
    among: int = 0

    def __post_init__(self) -> None:
        for name in ("p10_us", "p90_us", "undisturbed_us"):
            if getattr(self, name) < 0:
                object.__setattr__(self, name, self.median_us)

    @property
    def noise(self) -> float:
        """Spread of the runs, ``p90 / p10 - 1``."""
        return self.p90_us / max(self.p10_us, 1e-9) - 1

    def scaled(self, factor: float) -> Self:
        """The row with all its durations multiplied by a factor, at as many decimals as are written.

        >>> Row(Operator("relu", 8, 8), 10.0, 9.0, 12.0).scaled(1.1).p90_us
        13.2
        """
        names, least = ("median_us", "p10_us", "p90_us", "undisturbed_us"), 10.0**-DECIMALS
        return replace(
            self, **{name: max(round(factor * getattr(self, name), DECIMALS), least) for name in names}
        )
