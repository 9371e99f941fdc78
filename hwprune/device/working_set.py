"""How many bytes a network goes through between two runs of one of its kernels: what stays in which cache."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from hwprune.operators import Operator

#: The part of a network's weights among which its rows are measured: about what half of its latency leaves.
#: Those of the dense network would be in slower caches than those of the networks that are priced.
PRUNED_PART = 0.4
#: Working sets below the one are alike, since they fit into any second cache, and above the other into none.
LEAST_POWER, MOST_POWER = 18, 30


def weight_bytes(operator: Operator) -> int:
    """Bytes of its weights that are not zero, in single precision."""
    return 4 * operator.weights


def map_bytes(operator: Operator) -> int:
    """Bytes of the maps that it reads and writes, in single precision, for one image."""
    return 4 * (operator.in_channels + operator.out_channels) * operator.height * operator.width


def working_set(operators: Iterable[Operator], part: float = 1.0) -> int:
    """Bytes that a network goes through between two runs of one of its kernels, for one image.

    Weights are read once a run. The memory of maps is used again by those that come after, so that the
    largest ones tell how much of it there is.

    Args:
        operators: Of the network.
        part: Of its weights.
    """
    each = list(operators)
    weights = sum(map(weight_bytes, each))
    return round(part * weights) + max(map(map_bytes, each), default=0)


def size_class(working_set: int) -> int:
    """The power of two next to so many bytes: kernels among as many cost about the same.

    >>> size_class(1_100_000), size_class(100)
    (1048576, 262144)
    """
    power = round(math.log2(max(working_set, 1)))
    return 1 << min(max(power, LEAST_POWER), MOST_POWER)


def nearest(classes: Iterable[int], working_set: int) -> Sequence[int]:
    """Classes of working sets, those of about so many bytes first; 0, where none was noted, last.

    >>> nearest([0, 1 << 20, 1 << 24, 1 << 21], 3_000_000)
    [2097152, 1048576, 16777216, 0]
    """
    wanted = math.log2(max(working_set, 1))
    return sorted(classes, key=lambda size: abs(math.log2(size) - wanted) if size else math.inf)
