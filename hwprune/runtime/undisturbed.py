"""What something takes while nothing else disturbs the machine, from runs some of which were disturbed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

#: The part of the runs that are taken for undisturbed.
SHARE = 0.25
#: Lengths that differ by less count as equal: samples of a profiler lie on a grid.
_EXACT = 1e-6


def undisturbed(durations: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """The mean of the shortest interval that holds a quarter of the runs; the fastest one of several.

    Runs that nothing disturbs take much the same time, disturbed ones any longer one. Where something else
    on a shared machine comes and goes, the median goes up and down with it by a fifth, and this by a
    hundredth; on an idle machine they are the same. Durations that a profiler cuts to whole microseconds are
    averaged over the few values that they take. (A short form of the shorth of Andrews et al., Robust
    Estimates of Location, 1972.)

    Args:
        durations: Of any unit, at least one.

    >>> undisturbed([10.0, 10.1, 10.2, 12.9, 14.0, 13.1, 17.0, 20.0])
    10.05
    >>> undisturbed([2.5, 3.5, 3.5, 2.5, 2.5, 9.5])
    2.5
    """
    ordered = np.sort(np.asarray(durations, dtype=np.float64))
    count = max(int(np.ceil(SHARE * ordered.size)), 1)
    lengths = ordered[count - 1 :] - ordered[: ordered.size - count + 1]
    first = int(np.argmax(lengths <= lengths.min() + _EXACT))
    inside = (ordered >= ordered[first]) & (ordered <= ordered[first + count - 1])
    return float(ordered[inside].mean())
