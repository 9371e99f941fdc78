"""What timing single kernels costs itself: told by kernels with nothing to do among the timed ones.

A profiler's own work falls into the durations that it tells: 3 to 5 us per kernel in ONNX Runtime, depending
on what else the machine does in the same minute and on how much the caches hold. It is therefore measured in
the very runs that it is taken off from. What an idle kernel takes where nothing is recorded is no part of it:
:mod:`hwprune.runtime.idle`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hwprune.operators import Operator

#: What stands for a kernel that takes no longer than recording it, in microseconds.
LEAST = 0.1
#: A kernel with next to nothing to do, and how many of it lie among the operators of a file.
IDLE, IDLE_OPERATORS = Operator("conv", 8, 8, 1, 1), 8


def among_idle(operators: Sequence[Operator]) -> tuple[list[Operator], list[int]]:
    """Spreads :data:`IDLE_OPERATORS` times :data:`IDLE` evenly among the operators of a file.

    Returns:
        All of them, and the positions of the operators in it.

    >>> laid, positions = among_idle([Operator("relu", 8, 8)] * 4)
    >>> len(laid), positions
    (12, [1, 4, 7, 10])
    """
    places = len(operators) + IDLE_OPERATORS
    positions = [int((index + 0.5) * places / max(len(operators), 1)) for index in range(len(operators))]
    laid = [IDLE] * places
    for position, operator in zip(positions, operators, strict=True):
        laid[position] = operator
    return laid, positions


def without_recording(durations: npt.NDArray[np.float64], cost: float) -> npt.NDArray[np.float64]:
    """Durations of a kernel without what recording took of them, in microseconds.

    Args:
        durations: Of any shape.
        cost: Of recording one kernel.

    Returns:
        At least :data:`LEAST` each.

    >>> without_recording(np.array([2.5, 9.5]), 3.0)
    array([0.1, 6.5])
    """
    return np.asarray(np.maximum(durations - cost, LEAST))
