"""The rows that a network needs: which widths to measure, found while measuring."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hwprune.device.kinds import KINDS, configuration, with_channels
from hwprune.device.profile import DeviceProfile
from hwprune.device.rows import Row
from hwprune.device.steps import Steps
from hwprune.device.working_set import size_class
from hwprune.errors import MissingRowError
from hwprune.operators import Operator
from hwprune.runtime.knots import Curve, bisect, curves
from hwprune.runtime.operator_models import check_known, is_known
from hwprune.runtime.sampling import Progress, TimeOperators, measure_operators

#: Gaps between the widths at which another kernel is measured.
OTHER_KERNEL_GAPS = 3
#: Widths of a side that are crossed with those of the other where there is no time for more, for every place
#: of the period.
CROSSED_IN_HASTE = 6
#: Measuring takes longer than nothing.
LEAST_SECONDS = 1e-3


#: Parts of the weights that are left, at which kernels that skip zeros are measured.
DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02)


def with_zeros(operators: Iterable[Operator]) -> list[Operator]:
    """Operators with weights, at every density that is measured besides all of them.

    Args:
        operators: Of a network, none of whose weights is zero.
    """
    weighted = [operator for operator in operators if operator.weighted]
    return [replace(operator, density=density) for density in DENSITIES for operator in weighted]


def measure_with_zeros(
    operators: Sequence[Operator],
    profile: DeviceProfile,
    *,
    working_set: int,
    time_operators: TimeOperators = measure_operators,
) -> tuple[Row, ...]:
    """Rows for operators some of whose weights are zero, at their own widths.

    Args:
        operators: From :func:`with_zeros`.
        profile: Runtime, precision, threads and batch.
        working_set: Bytes that the network without zeros moves; as much less as there are zeros share a file.
        time_operators: See :func:`measure_rows`.
    """
    rows: list[Row] = []
    for density in dict.fromkeys(operator.density for operator in operators):
        alike = [replace(operator, name="") for operator in operators if operator.density == density]
        size = round(working_set * density)
        rows += time_operators(list(dict.fromkeys(alike)), profile.runtime, working_set=size)
    # Of all densities of a network, whose weights of zero take no memory.
    return tuple(replace(row, among=size_class(working_set)) for row in rows)


def check_measurable(operators: Iterable[Operator], runtime: str) -> None:
    """Raises where an operator cannot be measured, naming all of them: before minutes are spent on others.

    Args:
        operators: Of one or several networks.
        runtime: The kind of the runtime.

    Raises:
        MissingRowError: In that case.
    """
    refused = [operator for operator in operators if not is_known(operator, runtime)]
    if not refused:
        return
    kinds = list(dict.fromkeys(operator.kind for operator in refused))
    if len(kinds) == 1 and len(refused) == 1:
        check_known(refused[0], runtime)
    layers = dict.fromkeys(operator.name for operator in refused if operator.name)
    measurable = sorted(kind for kind in KINDS if is_known(Operator(kind, 1, 1), runtime))
    raise MissingRowError(
        f"operators of kind {', '.join(kinds)} cannot be measured in {runtime}",
        where=f"layers {', '.join(layers)}" if layers else None,
        expected=f"some of {', '.join(measurable)}",
        hint="prune to a number of groups (--keep), or for another runtime",
    )


def measure_rows(
    operators: Sequence[Operator],
    profile: DeviceProfile,
    *,
    working_set: int,
    progress: Progress | None = None,
    seconds: float | None = None,
    unaligned: bool = False,
    time_operators: TimeOperators = measure_operators,
) -> tuple[Row, ...]:
    """Rows for a network and everything narrower, at widths found by bisection.

    Operators that mix channels get a grid: the widths found along the outputs (at full input width) times
    those found along the inputs (at full output width).

    Args:
        operators: Fused operators of one dense network, or some of them.
        profile: Runtime, precision and rules.
        working_set: Bytes that the whole network moves; see :func:`working_set`.
        progress: Called with the number of rows done and known to be needed so far.
        seconds: After this time no interval is split any further, and only as many widths are crossed with
            those of the other side as can be measured until then, six of them at least: between them, tables
            interpolate. What was begun is completed.
        unaligned: Whether rows are wanted for widths, too, that run another kernel (see
            :class:`~hwprune.device.steps.Steps`) and that pruning avoids: a few of them, less exact.
        time_operators: Measures rows; whoever keeps them brings another one.

    Raises:
        RuntimeUnavailableError: If the runtime is missing or refuses an operator.
        MissingRowError: If an operator is of a kind that cannot be measured.
    """
    check_measurable(operators, profile.runtime.kind)
    search = _Search(operators, profile, progress, working_set, time_operators)
    begun = time.monotonic()
    deadline = math.inf if seconds is None else begun + seconds
    found = {
        (template, side, place): curve
        for template in search.widest
        for side in ("out", "in")
        for place, curve in enumerate(search.curves(template, side))
    }
    bisect(
        found,
        lambda pairs: search.measure([search.at(key[0], key[1], width) for key, width in pairs]),
        lambda: time.monotonic() < deadline,
    )
    now = time.monotonic()
    affordable = len(search.rows) * max(deadline - now, 0.0) / max(now - begun, LEAST_SECONDS)
    search.measure(_affordable(search, found, affordable))
    if unaligned:
        search.measure(
            [operator for template in search.widest for operator in search.other_kernel(template, found)]
        )
    return tuple(search.rows.values())


_Key = tuple[Operator, str, int]


def other_kernel_widths(template: Operator, steps: Steps) -> list[int]:
    """Numbers of input channels that the divisor of the staircase does not divide, spread over all of them.

    >>> other_kernel_widths(Operator("conv", 16, 16, 4, 4), Steps(align=8, divisor=4))
    [1, 5, 10, 15]
    """
    unit = 1 if template.depthwise else template.groups
    least = 2 if template.depthwise else 1  # a single channel is no depthwise convolution
    others = [
        width for width in range(unit, template.in_channels, unit) if width % steps.divisor and width >= least
    ]
    if not others:
        return []
    last = len(others) - 1
    return sorted({others[last * part // OTHER_KERNEL_GAPS] for part in range(OTHER_KERNEL_GAPS + 1)})


def _affordable(search: _Search, found: Mapping[_Key, Curve], count: float) -> list[Operator]:
    """The crossings of as many widths as make no more than ``count`` rows that are still to be measured."""
    longest = max((len(curve.widths) for curve in found.values()), default=0)
    most = CROSSED_IN_HASTE + bisect_right(
        range(CROSSED_IN_HASTE + 1, longest + 1),
        count,
        key=lambda most: len(set(_crossings(search, found, most)) - search.rows.keys()),
    )
    return _crossings(search, found, most)


def _crossings(search: _Search, found: Mapping[_Key, Curve], most: int) -> list[Operator]:
    """The operators that mix channels at every pair of measured widths, of every curve ``most`` at most."""
    return [
        with_channels(template, in_width, out_width)
        for template in search.widest
        if template.matrix
        for in_width in _measured(found, template, "in", most)
        for out_width in _measured(found, template, "out", most)
    ]


def _measured(found: Mapping[_Key, Curve], template: Operator, side: str, most: int) -> list[int]:
    """The widths of a side that were measured; of every curve ``most`` that are spread over it."""
    curves = [curve.widths for key, curve in found.items() if key[:2] == (template, side)]
    return sorted({width for widths in curves for width in spread(widths, most)})


def spread(widths: Sequence[int], most: int) -> list[int]:
    """So many of the widths, the first and the last among them, as far apart as there are.

    >>> spread([1, 2, 4, 8, 16, 24, 32, 40], 4), spread([8, 16], 4)
    ([1, 4, 16, 40], [8, 16])
    """
    if len(widths) <= most:
        return list(widths)
    last = len(widths) - 1
    return [widths[last * place // (most - 1)] for place in range(most)]


class _Search:
    """The configurations of a network at their widest, and what was measured of them so far."""

    def __init__(
        self,
        operators: Sequence[Operator],
        profile: DeviceProfile,
        progress: Progress | None,
        working_set: int,
        time_operators: TimeOperators,
    ) -> None:
        self.profile, self.progress, self.time_operators = profile, progress, time_operators
        self.widest = _widest(operators)
        self.widths = _widths(operators)
        self.working_set = working_set
        self.rows: dict[Operator, Row] = {}

    def steps(self, template: Operator, side: str) -> Steps:
        steps = self.profile.steps_for(template)
        # The period belongs to the outputs: a kernel handles several blocks of them at once.
        return replace(steps, period=1) if template.matrix and side == "in" else steps

    def curves(self, template: Operator, side: str) -> list[Curve]:
        if side == "in" and not template.matrix:
            return []
        steps = self.steps(template, side)
        at_most, widest = self.widths[configuration(template), side], _channels(template, side)
        # Of those that are wider than a step the widest speaks for all.
        found = curves({width for width in at_most if width <= steps.align or width == widest}, steps)
        if template.depthwise:  # a single channel is no depthwise convolution
            for curve in found:
                curve.lattice = [channels for channels in curve.lattice if channels > 1]
        return [curve for curve in found if curve.lattice]

    def other_kernel(self, template: Operator, found: Mapping[_Key, Curve]) -> list[Operator]:
        """Operators at widths that run another kernel: the least, the most and two between.

        Across such inputs the outputs are as good as straight within a place of the period, so that its ends
        are enough.
        """
        widths = other_kernel_widths(template, self.steps(template, "in"))
        if not template.matrix:
            return [
                self.at(template, "out", width * template.out_channels // template.in_channels)
                for width in widths
            ]
        ends = {
            width
            for key, curve in found.items()
            if key[:2] == (template, "out")
            for width in (curve.widths[0], curve.widths[-1])
        }
        return [with_channels(template, inputs, outputs) for inputs in widths for outputs in sorted(ends)]

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

        rows = self.time_operators(fresh, self.profile.runtime, report, working_set=self.working_set)
        for row in rows:
            self.rows[row.operator] = row
        return [self.rows[operator].undisturbed_us for operator in wanted]


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


def _widths(operators: Sequence[Operator]) -> dict[tuple[Operator, str], set[int]]:
    """Configuration and side to the widths that operators of a network have there."""
    found: dict[tuple[Operator, str], set[int]] = {}
    for operator in operators:
        for side in ("in", "out"):
            found.setdefault((configuration(operator), side), set()).add(_channels(operator, side))
    return found


def _channels(operator: Operator, side: str) -> int:
    return operator.in_channels if side == "in" else operator.out_channels
