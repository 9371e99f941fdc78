"""What something takes while nothing else disturbs the machine, from runs some of which were disturbed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

#: The part of the runs that are taken for undisturbed, and how many of them at least.
SHARE, LEAST_RUNS = 0.05, 3
#: The same of runs of a file of many kernels, which are told apart by what all kernels took together.
SHARE_OF_FILES = 0.2
#: Rounding of samples that lie whole microseconds apart, in microseconds.
_EXACT = 1e-6


def undisturbed(durations: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """The mean of the fastest twentieth of the runs.

    Whatever else runs on the machine makes runs slower, never faster. Where it comes and goes, as on a
    virtual machine with busy neighbours, the median goes up and down with it by a fifth and more; this does
    only where hardly any run is left alone. On an idle machine the two are within one or two percent.

    Args:
        durations: In microseconds, at least one.

    >>> undisturbed([10.0, 10.2, 14.0, 13.1, 10.1, 20.0])
    10.1
    """
    ordered = np.sort(np.asarray(durations, dtype=np.float64))
    return float(ordered[: max(int(SHARE * ordered.size), LEAST_RUNS)].mean())


def undisturbed_runs(durations: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The runs in which several kernels that run one after the other took least together: a fifth of them.

    Their means are what each kernel takes undisturbed. Runs are chosen by the sum, not kernel by kernel, so
    that the mean stays right where a profiler cuts durations to whole microseconds: the fastest samples of
    one kernel would be those that lost most by the cut.

    Args:
        durations: Of every kernel in every run, ``(kernels, runs)``, in microseconds.

    Returns:
        The same of the chosen runs, ``(kernels, chosen)``.

    >>> undisturbed_runs(np.array([[1.5, 0.5, 2.5, 1.5], [3.5, 3.5, 2.5, 5.5]])).mean(axis=1)
    array([1.5       , 3.16666667])
    """
    count = max(int(SHARE_OF_FILES * durations.shape[1]), LEAST_RUNS)
    return durations[:, np.argsort(durations.sum(axis=0), kind="stable")[:count]]


def is_cut(ordered: npt.NDArray[np.float64]) -> bool:
    """Whether most samples lie whole microseconds apart."""
    apart = ordered - ordered[ordered.size // 2]
    return bool((np.abs(apart - np.round(apart)) < _EXACT).mean() >= 0.5)


def binned_median(values: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Median, also of samples that were cut to whole microseconds and moved to the middle of their bin.

    Within the bin of the median it interpolates by the share of samples on either side. Samples that do not
    lie a whole number of microseconds apart were not cut: theirs is the usual median.

    >>> binned_median([1.5, 1.5, 1.5, 2.5])
    1.6666666666666665
    >>> binned_median([1.42, 1.57, 1.63, 2.8])
    1.6
    """
    ordered = np.sort(np.asarray(values))
    if not is_cut(ordered):
        return float(np.median(ordered))
    middle = ordered[ordered.size // 2]
    below, within = int((ordered < middle).sum()), int((ordered == middle).sum())
    return float(middle - 0.5 + (ordered.size / 2 - below) / within)
