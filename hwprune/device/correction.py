"""What lies between the sum of a network's rows and what the network takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

#: Bytes of a weight, and of a MiB.
_WEIGHT, _MIB = 4, 1 << 20


@dataclass(frozen=True, slots=True)
class Correction:
    """From sums of rows to latencies of networks.

    Attributes:
        factor: Multiplies the sum of rows.
        overhead_us: Added to it, in microseconds; negative where timing single operators adds to them.
        held_mib: Weights that stay in a cache from one run to the next, in MiB at single precision.
        spilled_us: What each MiB beyond costs, in microseconds: it is fetched anew in every run.
    """

    factor: float = 1.0
    overhead_us: float = 0.0
    held_mib: float = math.inf
    spilled_us: float = 0.0

    def latency_us(self, sums: FloatArray, weights_mib: FloatArray) -> FloatArray:
        """Predicted latencies in microseconds, of any shape.

        Args:
            sums: Sums of rows, in microseconds.
            weights_mib: What all weights of the network take, in MiB; of the same shape.

        >>> correction = Correction(1.1, 5.0, held_mib=1.2, spilled_us=30.0)
        >>> correction.latency_us(np.array([50.0, 100.0]), np.array([1.0, 2.2]))
        array([ 60., 145.])
        """
        return np.asarray(self.overhead_us + self.factor * sums + self.spilling_us(weights_mib))

    def spilling_us(self, weights_mib: FloatArray) -> FloatArray:
        """What the weights that leave the cache cost, in microseconds; arguments as above."""
        if not self.spilled_us:
            return np.zeros(np.shape(weights_mib))
        return np.asarray(self.spilled_us * np.maximum(weights_mib - self.held_mib, 0.0))

    def as_record(self) -> dict[str, float | None]:
        """As JSON has it: ``held_mib`` is ``None`` where nothing spills."""
        return {
            "factor": self.factor,
            "overhead_us": self.overhead_us,
            "held_mib": self.held_mib if self.spilled_us else None,
            "spilled_us": self.spilled_us,
        }


def mib(weights: FloatArray) -> FloatArray:
    """What so many weights take in single precision, in MiB.

    >>> float(mib(np.array(1 << 19)))
    2.0
    """
    return np.asarray(weights * (_WEIGHT / _MIB))
