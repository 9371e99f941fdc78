"""How far two latency tables agree on the operators that both have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hwprune.device.rows import Row
from hwprune.device.table import LatencyTable
from hwprune.errors import ProfileError
from hwprune.operators import Operator


def compare_tables(first: LatencyTable, second: LatencyTable) -> dict[str, Any]:
    """Differences of the rows of the second table from those of the first, relative to the first.

    What counts of a row is compared; medians where one of the tables has nothing else.

    Args:
        first: Any table.
        second: Of the same batch size and precision.

    Returns:
        ``rows`` in common, ``only_first`` and ``only_second``; ``compared`` (``undisturbed`` or ``median``);
        ``median``, ``p95`` and ``worst`` of the absolute relative differences, and ``bias``, the median
        of the signed ones.

    Raises:
        ProfileError: If they were measured differently, or have no row in common.

    >>> from hwprune.device.rows import Row
    >>> from hwprune.operators import Operator
    >>> tables = [LatencyTable((Row(Operator("relu", 8, 8), price),)) for price in (10.0, 12.0)]
    >>> compare_tables(*tables)["median"]
    0.2
    """
    wanted, got = (f"batch {table.batch}, {table.precision}" for table in (first, second))
    if wanted != got:
        raise ProfileError(
            "tables of another batch size or precision cannot be compared",
            where=second.origin,
            expected=f"{wanted}, as in {first.origin}",
            got=got,
        )
    keys = _keys_of(first, second)
    common = [key for key in keys(first) if key in keys(second)]
    if not common:
        raise ProfileError(
            "the tables have no row in common",
            where=second.origin,
            expected=f"operators of {first.origin}",
            hint="build both for the same networks (--for)",
        )
    counted = "median" if first.of_medians or second.of_medians else "undisturbed"
    before, after = (
        {key: getattr(row, f"{counted}_us") for key, row in keys(table).items()} for table in (first, second)
    )
    differences = np.array([after[key] / before[key] - 1 for key in common])
    sizes = np.abs(differences)
    return {
        "rows": len(common),
        "only_first": len(first) - len(common),
        "only_second": len(second) - len(common),
        "compared": counted,
        "median": round(float(np.median(sizes)), 4),
        "p95": round(float(np.percentile(sizes, 95)), 4),
        "worst": round(float(sizes.max()), 4),
        "bias": round(float(np.median(differences)), 4),
    }


def _keys_of(
    first: LatencyTable, second: LatencyTable
) -> Callable[[LatencyTable], dict[tuple[Operator, int], Row]]:
    """From a table to its rows by what they measure: among how many bytes, too, where both noted it."""
    noted = all(row.among for table in (first, second) for row in table)
    return lambda table: {(row.operator, row.among if noted else 0): row for row in table}
