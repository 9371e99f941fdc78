"""The rows that a network needs: which widths to measure, found while measuring."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from hwprune.device.kinds import configuration, with_channels
from hwprune.device.profile import DeviceProfile
from hwprune.device.rows import Row
from hwprune.device.steps import Steps
from hwprune.operators import Operator
from hwprune.runtime.knots import Curve, bisect, curves
from hwprune.runtime.sampling import Progress, bytes_of, measure_operators


def measure_rows(
    operators: Sequence[Operator],
    profile: DeviceProfile,
    *,
    working_set: int,
    progress: Progress | None = None,
    seconds: float | None = None,
) -> tuple[Row, ...]:
    """Rows for a network and everything narrower, at widths found by bisection.

    Operators that mix channels get a grid: the widths found along the outputs (at full input width) times
    those found along the inputs (at full output width).

    Args:
        operators: Fused operators of one dense network, or some of them.
        profile: Runtime, precision and rules.
        working_set: Bytes that the whole network moves; see :func:`working_set`.
        progress: Called with the number of rows done and known to be needed so far.
        seconds: No interval is split any further after this time; what was begun is completed.

    Raises:
        RuntimeUnavailableError: If the runtime is missing or refuses an operator.
        MissingRowError: If an operator is of a kind that cannot be measured.
    """
    search = _Search(operators, profile, progress, working_set)
    deadline = None if seconds is None else time.monotonic() + seconds
    found = {
        (template, side, place): curve
        for template in search.widest
        for side in ("out", "in")
        for place, curve in enumerate(search.curves(template, side))
    }
    bisect(
        found,
        lambda pairs: search.measure([search.at(key[0], key[1], width) for key, width in pairs]),
        lambda: deadline is None or time.monotonic() < deadline,
    )
    search.measure(
        [
            with_channels(template, in_width, out_width)
            for template in search.widest
            if template.matrix
            for in_width in _measured(found, template, "in")
            for out_width in _measured(found, template, "out")
        ]
    )
    return tuple(search.rows.values())


def working_set(operators: Sequence[Operator]) -> int:
    """Bytes of weights and maps that a network goes through in one run, for one image."""
    return sum(map(bytes_of, operators))


_Key = tuple[Operator, str, int]


def _measured(found: dict[_Key, Curve], template: Operator, side: str) -> list[int]:
    return sorted(
        width for key, curve in found.items() if key[:2] == (template, side) for width in curve.widths
    )


class _Search:
    """The configurations of a network at their widest, and what was measured of them so far."""

    def __init__(
        self,
        operators: Sequence[Operator],
        profile: DeviceProfile,
        progress: Progress | None,
        working_set: int,
    ) -> None:
        self.profile, self.progress = profile, progress
        self.widest = _widest(operators)
        self.working_set = working_set
        self.rows: dict[Operator, Row] = {}

    def steps(self, template: Operator, side: str) -> Steps:
        steps = self.profile.steps_for(template)
        # The period belongs to the outputs: a kernel handles several blocks of them at once.
        return replace(steps, period=1) if template.matrix and side == "in" else steps

    def curves(self, template: Operator, side: str) -> list[Curve]:
        if side == "in" and not template.matrix:
            return []
        width = template.in_channels if side == "in" else template.out_channels
        found = curves(width, self.steps(template, side))
        if template.depthwise:  # a single channel is no depthwise convolution
            for curve in found:
                curve.lattice = [channels for channels in curve.lattice if channels > 1]
        return [curve for curve in found if curve.lattice]

    def at(self, template: Operator, side: str, width: int) -> Operator:
        if not template.matrix:
            return with_channels(template, width * template.in_channels // template.out_channels, width)
        if side == "in":
            return with_channels(template, width, template.out_channels)
        return with_channels(template, template.in_channels, width)

    def measure(self, wanted: Sequence[Operator]) -> list[float]:
        """Latencies in microseconds; what was measured before is not measured again."""
        fresh = [operator for operator in dict.fromkeys(wanted) if operator not in self.rows]
        done = len(self.rows)

        def report(count: int, total: int) -> None:
            if self.progress is not None:
                self.progress(done + count, done + total)

        rows = measure_operators(fresh, self.profile.runtime, report, working_set=self.working_set)
        for row in rows:
            self.rows[row.operator] = row
        return [self.rows[operator].median_us for operator in wanted]


def _widest(operators: Sequence[Operator]) -> tuple[Operator, ...]:
    """Per configuration, an operator with the most input and output channels that the network has."""
    widest: dict[Operator, Operator] = {}
    for operator in operators:
        key = configuration(operator)
        known = widest.get(key, operator)
        widest[key] = with_channels(
            replace(operator, name=""),
            max(known.in_channels, operator.in_channels),
            max(known.out_channels, operator.out_channels),
        )
    return tuple(widest.values())
