"""The latency of one configuration of an operator over its channels, filled in between measured rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from hwprune.device.rows import Row
from hwprune.device.steps import Bracket, FloatArray, IntArray, Steps, bracket


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """Latency of one configuration over its channels.

    Attributes:
        rows: Where every number of input channels lies between the measured ones.
        columns: The same for output channels.
        values: Shape ``(measured inputs + 1, measured outputs + 1)``, in microseconds; NaN where nothing
            was measured, and in the last row and column, which positions of -1 refer to.
    """

    rows: Bracket
    columns: Bracket
    values: FloatArray

    def times(self, factor: float) -> Surface:
        """The surface with all latencies multiplied."""
        return self if factor == 1 else replace(self, values=factor * self.values)

    def latencies_us(self, in_channels: IntArray, out_channels: IntArray) -> FloatArray:
        """Latencies in microseconds, NaN where the table has none; arguments broadcast."""
        row, column = self.rows.clip(in_channels), self.columns.clip(out_channels)
        left, right = self.columns.low[column], self.columns.high[column]
        across = self.columns.fraction[column]
        above, below = self.rows.low[row], self.rows.high[row]
        top = (1 - across) * self.values[above, left] + across * self.values[above, right]
        bottom = (1 - across) * self.values[below, left] + across * self.values[below, right]
        down = self.rows.fraction[row]
        return np.asarray((1 - down) * top + down * bottom)


@lru_cache(maxsize=4096)
def surface_of(rows: tuple[Row, ...], matrix: bool, steps: Steps) -> Surface:
    """Fills the grid of all measured widths, along the outputs first.

    Args:
        rows: Of one configuration, no two of the same operator.
        matrix: Whether it mixes channels, so that inputs and outputs count.
        steps: The staircase of the device.
    """
    # The period belongs to the output channels: a kernel handles several blocks of them at once.
    inner = Steps(steps.align, 1, steps.divisor)
    outer = Steps(steps.align, steps.period, 1) if matrix else steps
    in_knots = sorted({row.operator.in_channels for row in rows}) if matrix else [1]
    out_knots = sorted({row.operator.out_channels for row in rows})
    columns = bracket(out_knots, outer)
    if rows[0].operator.depthwise and columns.low[1] < 0 and columns.low.size > 2:
        # A single channel is no depthwise convolution and is not measured; it takes no longer than two.
        for found in (columns.low, columns.high, columns.fraction):
            found[1] = found[2]
    values = np.full((len(in_knots) + 1, len(out_knots) + 1), np.nan)
    in_position = {knot: position for position, knot in enumerate(in_knots)}
    out_position = {knot: position for position, knot in enumerate(out_knots)}
    for row in rows:
        at = in_position[row.operator.in_channels] if matrix else 0
        values[at, out_position[row.operator.out_channels]] = row.undisturbed_us
    for at in range(len(in_knots)):
        _fill(values[at], out_knots, outer)
    if not matrix:
        widths = columns.low.size
        zeros = np.zeros(widths, dtype=np.int64)
        return Surface(Bracket(zeros, zeros, np.zeros(widths)), columns, values)
    for at in range(len(out_knots)):
        _fill(values[:, at], in_knots, inner)
    return Surface(bracket(in_knots, inner), columns, values)


def _fill(line: FloatArray, knots: list[int], steps: Steps) -> None:
    """Interpolates the gaps of one line of the grid in place, from what is known in that line."""
    known = [at for at in range(len(knots)) if not np.isnan(line[at])]
    if not known or len(known) == len(knots):
        return
    found = bracket([knots[at] for at in known], steps)
    filled = np.array([line[at] for at in known] + [np.nan])
    for at, knot in enumerate(knots):
        if np.isnan(line[at]):
            channels = int(found.clip(np.array(knot)))
            low, high, part = found.low[channels], found.high[channels], found.fraction[channels]
            line[at] = (1 - part) * filled[low] + part * filled[high]
