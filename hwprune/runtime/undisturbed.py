"""What something takes while nothing else disturbs the machine, from runs some of which were disturbed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

#: The part of the runs that are taken for undisturbed.
SHARE = 0.05


def undisturbed(durations: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """The mean of the fastest twentieth of the runs, of one at least.

    Whatever else runs on the machine makes runs slower, never faster. Where it comes and goes, as on a
    virtual machine with busy neighbours, the median goes up and down with it by a fifth and more; this does
    only where hardly any run is left alone. On an idle machine the two are within one or two percent.

    Args:
        durations: Of any unit, at least one.

    >>> undisturbed([10.0, 10.2, 14.0, 13.1, 17.0, 20.0])
    10.0
    """
    ordered = np.sort(np.asarray(durations, dtype=np.float64))
    return float(ordered[: max(int(SHARE * ordered.size), 1)].mean())
