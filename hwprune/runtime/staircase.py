"""Finds the latency staircase of this machine by measuring probes around its edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from hwprune.device.kinds import with_channels
from hwprune.device.profile import RuntimeSpec
from hwprune.device.steps import Steps
from hwprune.operators import Operator
from hwprune.runtime.sampling import measure_operators

#: What a rule matches (kind, groups) to the operator that its staircase is found on.
PROBES: dict[tuple[str, str | None], Operator] = {
    ("conv", None): Operator("conv", 64, 64, 14, 14, 3, 3, padding=1),
    ("conv", "depthwise"): Operator("conv", 64, 64, 56, 56, 3, 3, padding=1, groups=64),
    ("conv_transpose", None): Operator("conv_transpose", 64, 64, 14, 14, 2, 2, stride=2),
}
#: Steps looked for, widest first; periods, in steps, narrowest first; divisors, least first.
ALIGNS, PERIODS, DIVISORS = (32, 16, 8, 4, 2), (1, 2, 4, 8), (1, 2, 4, 8, 16)
#: How flat a step is, how well a period must predict, and how much another kernel costs.
FLAT, PERIODIC, OTHER_KERNEL = 0.05, 0.03, 0.15
#: Measurements of a probe: how many there are at least, and how many until two of them agree.
LEAST_ATTEMPTS, MOST_ATTEMPTS = 3, 8

Latencies = Mapping[int, float]


def find_steps(probe: Operator, spec: RuntimeSpec) -> Steps:
    """The staircase of an operator's kind: what two measurements in a row agree on.

    Every measurement counts what each width took least so far. A disturbance makes widths differ that are on
    one step, so that first answers may be too fine, and come closer where the machine is shared with others.
    Where no two in a row agree in everything, the last few decide if they agree on the step; else (a busy
    machine) none is told: every channel counts as one.

    Args:
        probe: See :data:`PROBES`.
        spec: Runtime, threads and batch.
    """
    seen: list[Steps] = []
    least_us: dict[Operator, float] = {}
    while len(seen) < MOST_ATTEMPTS:
        seen.append(_find_once(probe, spec, least_us))
        if len(seen) >= LEAST_ATTEMPTS and seen[-1] == seen[-2]:
            return seen[-1]
    last = seen[-LEAST_ATTEMPTS:]
    return last[-1] if len({steps.align for steps in last}) == 1 else Steps()


def _find_once(probe: Operator, spec: RuntimeSpec, least_us: dict[Operator, float]) -> Steps:
    """The staircase by one more measurement; in ``least_us`` is left what each operator took least."""

    def outputs(widths: Sequence[int]) -> Latencies:
        return measure([with_channels(probe, probe.in_channels, width) for width in widths], widths)

    def inputs(widths: Sequence[int]) -> Latencies:
        return measure([with_channels(probe, width, probe.out_channels) for width in widths], widths)

    def both(widths: Sequence[int]) -> Latencies:
        return measure([with_channels(probe, width, width) for width in widths], widths)

    def measure(operators: Sequence[Operator], widths: Sequence[int]) -> Latencies:
        for operator, row in zip(operators, measure_operators(operators, spec), strict=True):
            least_us[operator] = min(row.undisturbed_us, least_us.get(operator, math.inf))
        return {width: least_us[operator] for width, operator in zip(widths, operators, strict=True)}

    along: Callable[[Sequence[int]], Latencies] = both if probe.depthwise else outputs
    across = both if probe.depthwise else inputs
    divisor = divisor_of(across(range(49, 65)))
    align = align_of(along(range(33, 65)), divisor if probe.depthwise else 1)
    if align == 1 or align % divisor:
        return Steps(align=align)
    if probe.depthwise:  # blocks of channels are independent of each other
        return Steps(align=align, divisor=divisor)
    return Steps(align, period_of(along(range(align, 18 * align, align)), align), divisor)


def align_of(latency: Latencies, divisor: int = 1) -> int:
    """The widest step within which channels are free: no place in it costs less than its end.

    A place may well cost more than the end of its step, where a runtime handles what is left over slowly.
    What a place costs is its mean over all steps: neighbours who slow down single measurements by a tenth
    do not hide the step.

    Args:
        latency: Width to microseconds over whole steps.
        divisor: Widths that it does not divide are left out.

    >>> align_of({width: 10.0 * -(-width // 8) for width in range(33, 65)})
    8
    """
    widths = [width for width in latency if width % divisor == 0]
    for align in ALIGNS:
        shares: dict[int, list[float]] = {}
        for width in widths:
            shares.setdefault(width % align, []).append(latency[width] / latency[-(-width // align) * align])
        if all(sum(place) / len(place) >= 1 - FLAT for place in shares.values()):
            return align
    return 1


def period_of(latency: Latencies, align: int) -> int:
    """The shortest period after which steps rise alike: a width lies halfway between those around it.

    >>> climb = {8: 3, 16: 4, 24: 5, 0: 10}
    >>> period_of({width: 10.0 * ((width - 1) // 32) + climb[width % 32] for width in range(8, 200, 8)}, 8)
    32
    """
    errors = {}
    for steps in PERIODS:
        period = steps * align
        inner = [width for width in latency if width - period in latency and width + period in latency]
        if inner:
            errors[period] = max(
                abs((latency[width - period] + latency[width + period]) / 2 / latency[width] - 1)
                for width in inner
            )
    good = [period for period, error in errors.items() if error <= PERIODIC]
    return good[0] if good else min(errors, key=lambda period: errors[period], default=align)


def divisor_of(latency: Latencies) -> int:
    """The least number whose multiples all run the fast kernel; 1 where every width does.

    >>> divisor_of({width: 20.0 if width % 4 else 10.0 for width in range(49, 65)})
    4
    """
    widest = max(latency)
    for divisor in DIVISORS:
        multiples = [width for width in latency if width % divisor == 0]
        if all(latency[width] <= (1 + OTHER_KERNEL) * latency[widest] for width in multiples):
            return divisor
    return 1
