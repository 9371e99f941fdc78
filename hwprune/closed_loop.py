"""Measures networks of chosen widths on the device and corrects the budget until the target is met.

A sum of single operators misses what a runtime does between them: the prediction is fitted to the network at
hand before training (:mod:`hwprune.network_calibration`), and what is left over is corrected when the support
settles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from torch import nn

from hwprune.device.profile import DeviceProfile
from hwprune.errors import TargetError
from hwprune.graph.axes import BoolArray
from hwprune.graph.record import ExampleInputs
from hwprune.groups.costs import MARGIN, LatencyBudget, Widths
from hwprune.kept_measurements import Loop, forget, measured_once
from hwprune.operators import Operator
from hwprune.runtime.bench import THIS_MACHINE, Bench, Exports
from hwprune.runtime.patience import Patience
from hwprune.runtime.timing import Timing

#: A prediction is corrected only where the measurement misses the target, or is faster by more than this part
#: of it: corrections within the noise of a measurement would make equal runs differ.
WASTE_TOLERANCE = 0.05
#: A network that is safe is taken rather than one that only just meets the target if it wastes no more.
MOST_WASTE = 0.14
#: The part of the target that must be free in a measurement, so that the final one does not miss it: ratios
#: of medians of networks timed alternately for seconds come out alike within 0.7 % (one standard deviation).
SAFETY = 0.01
#: Turns of build, measure, correct.
MAX_TURNS = 6
#: Limits that differ by a smaller part are one: nothing is looked for between them.
FINEST = 0.003
#: The part of what is allowed that is aimed at between two measured networks: amid what ends the loop.
AIM = 1 - (WASTE_TOLERANCE + SAFETY) / 2


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the closed loop.

    Attributes:
        limit_us: The predicted latency that was aimed at.
        predicted_us: What the chosen widths are predicted to take.
        measured_us: What they took: the median, or undisturbed, whichever is nearer to what is allowed.
        allowed_us: What they may take, by the dense network's latency in the same sense.
        dense_us: What the dense network took undisturbed in the same run.
        measurement: Key of the measurement (:func:`~hwprune.kept_measurements.measured_once`).
        reused: Whether an earlier run made it.
        finished: Whether the network was trained to the end and timed as it is delivered, by the medians.
        disturbed: Whether something disturbed that timing, so that it says nothing.
    """

    limit_us: float
    predicted_us: float
    measured_us: float
    allowed_us: float
    dense_us: float = 0.0
    measurement: str = ""
    reused: bool = False
    finished: bool = False
    disturbed: bool = False

    @property
    def part(self) -> float:
        """The part of what is allowed that it took."""
        return self.measured_us / self.allowed_us

    @property
    def safe(self) -> bool:
        """Whether a later measurement can be expected to meet the target, too."""
        return self.part <= 1 - SAFETY

    @property
    def missed(self) -> bool:
        """Whether it takes longer than it may, and nothing disturbed that."""
        return self.part > 1 and not self.disturbed

    @property
    def corrected_us(self) -> float:
        """The predicted latency at which the target is to be met, going by this network's error."""
        return self.predicted_us / self.part * (1 - MARGIN / 2)


class Axis(Protocol):
    """Something that a network has less or more of."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def width(self) -> int:
        """How much of it the dense network has."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class DeviceLoop:
    """Builds networks of given widths and times them on the device.

    Attributes:
        build: From what is kept of each axis to a network; nothing means dense.
        example_inputs: What it is exported with.
        axes: The axes that widths refer to, in order.
        profile: The device, made true for the one that is measured on.
        patience: For timing again what was disturbed.
        bench: What is measured on.
        exports: Exports what is built.
    """

    build: Callable[[Mapping[str, BoolArray]], nn.Module]
    example_inputs: ExampleInputs
    axes: Sequence[Axis]
    profile: DeviceProfile
    patience: Patience
    bench: Bench = THIS_MACHINE
    exports: Exports = field(default_factory=Exports)

    def measure(self, networks: Mapping[str, Mapping[str, BoolArray]]) -> dict[str, Timing]:
        """Times networks alternately in one run, again where something disturbs it.

        Args:
            networks: Name to what is kept of each axis; ``dense`` is one of them.

        Returns:
            Name to timing.
        """
        built = {name: self.build(kept) for name, kept in networks.items()}
        with self.exports.files(built, self.example_inputs, self.profile) as paths:
            return self.patience.least_disturbed(lambda: self.bench.time(paths, self.profile))

    def kept(self, widths: Widths) -> dict[str, BoolArray]:
        """The first channels of every axis: latency does not depend on which ones stay."""
        return {
            axis.name: np.arange(axis.width) < width for axis, width in zip(self.axes, widths, strict=True)
        }


def settle_on_device(
    loop: Loop,
    operators: Sequence[Operator],
    budget: LatencyBudget,
    allowed_us: Callable[[float], float],
    choose: Callable[[LatencyBudget], Widths],
    dense: Widths,
) -> tuple[Widths, float, tuple[Turn, ...]]:
    """Chooses widths, measures them, corrects the budget and goes on until the measured target is met.

    The measurements are kept, so that equal runs choose equal widths.

    Args:
        loop: Measures.
        operators: Fused operators of the dense network.
        budget: The predicted latency aimed at first.
        allowed_us: From the dense network's measured latency to the one allowed.
        choose: Widths for a budget.
        dense: Widths of the dense network, in the sense of ``budget``.

    Returns:
        The widths, the limit they were chosen with, and every turn taken.
    """
    dense_predicted_us = float(budget.used(dense))
    tried: list[_Tried] = []
    while len(tried) < MAX_TURNS:
        found = _untried(budget, choose, tried)
        if found is None:
            break
        limit, widths = found
        made = measured_once(loop, operators, {"dense": {}, "slim": loop.kept(widths)})
        measured, allowed = decisive(made.timings, allowed_us)
        predicted, dense_us = float(budget.used(widths)), made.timings["dense"].undisturbed_us
        turn = Turn(limit, predicted, measured, allowed, dense_us, made.key, made.reused)
        tried.append(_Tried(turn, widths))
        if 1 - WASTE_TOLERANCE <= turn.part <= 1 - SAFETY:
            break
        budget = replace(budget, limit=_next_limit([each.turn for each in tried], dense_predicted_us))
    best = _best(tried)
    return best.widths, best.turn.limit_us, tuple(each.turn for each in tried)


def forget_disturbed(
    turns: Sequence[Turn],
    limit_us: float,
    timings: Mapping[str, Timing],
    allowed_us: Callable[[float], float],
) -> None:
    """Forgets what turns measured if something disturbed them: another run shall not choose by them again.

    The finished network shows it: it misses the target although it did not when it was chosen, or by more,
    or it is much faster than then. One that was corrected shows it where it is much faster than the error of
    the one before it foretold.

    Args:
        turns: Of the run.
        limit_us: What the network was chosen with.
        timings: Of ``dense`` and ``slim``, finished.
        allowed_us: From the dense network's latency to the one allowed.
    """
    chosen = next((turn for turn in turns if turn.limit_us == limit_us), None)
    if chosen is None:
        return
    before = next((turn for turn in reversed(turns) if turn.finished and turn.limit_us != limit_us), None)
    if before is not None:
        foretold = before.part * chosen.predicted_us / before.predicted_us
        if chosen.part < foretold * (1 - MOST_WASTE):
            forget(turn.measurement for turn in turns)
        return
    measured, allowed = decisive(timings, allowed_us)
    missed_by = timings["slim"].median_us / allowed_us(timings["dense"].median_us)
    faster = measured / allowed < chosen.part * (1 - WASTE_TOLERANCE)
    if faster or missed_by > (chosen.part * (1 + WASTE_TOLERANCE) if chosen.part > 1 else 1.0):
        forget(turn.measurement for turn in turns)


@dataclass(frozen=True, slots=True, eq=False)
class _Tried:
    """A network that was measured, and the turn in which it was."""

    turn: Turn
    widths: Widths


def _next_limit(turns: Sequence[Turn], dense_predicted_us: float) -> float:
    """The predicted latency at which the target is expected, in microseconds, after one turn or more.

    Between the slowest network that is safe and the next one that is not, the dense one at last, on the
    power law through the two: where a prediction is off by another factor for narrow networks than for wide
    ones, a correction by the factor of one of them passes the target by. Where none is safe, by the error of
    the last one.

    >>> safe, slow = Turn(30.0, 30.0, 24.0, 32.0, 64.0), Turn(39.0, 39.0, 40.0, 32.0, 64.0)
    >>> round(_next_limit([safe], 60.0), 2), round(_next_limit([slow, safe], 60.0), 2)
    (35.98, 34.24)
    """
    last = turns[-1]
    fast = max((turn for turn in turns if turn.safe), key=lambda turn: turn.predicted_us, default=None)
    if fast is None:
        return last.corrected_us
    points = [(turn.predicted_us, turn.part) for turn in turns if not turn.safe]
    slow = [
        point
        for point in (*points, (dense_predicted_us, last.dense_us / last.allowed_us))
        if point[0] > fast.predicted_us and point[1] > AIM
    ]
    if not slow or fast.part >= AIM:
        return last.corrected_us
    predicted_us, part = min(slow)
    power = math.log(predicted_us / fast.predicted_us) / math.log(part / fast.part)
    return fast.predicted_us * math.exp(power * math.log(AIM / fast.part))


def _untried(
    budget: LatencyBudget, choose: Callable[[LatencyBudget], Widths], tried: Sequence[_Tried]
) -> tuple[float, Widths] | None:
    """The next network to measure: for the budget's limit, or between the networks that enclose the target.

    Args:
        budget: Its limit is where a correction expects the target; what lies outside of the networks that
            were measured is known to be too fast or too slow.
        choose: Widths for a budget.
        tried: What was measured.

    Returns:
        The limit and the widths chosen for it; ``None`` where nothing lies between.
    """
    low = max((each.turn.limit_us for each in tried if each.turn.safe), default=0.0)
    high = min((each.turn.predicted_us for each in tried if not each.turn.safe), default=np.inf)
    limit = budget.limit
    while high - low > FINEST * low:
        if not low < limit < high:
            limit = (low + high) / 2
        if np.isinf(limit):  # the same network is expected to be the slowest that meets the target
            break
        try:
            widths = choose(budget.with_limit(limit))
        except TargetError:
            if not tried:
                raise
            low = limit  # corrected out of reach: training is not lost for that, the report tells of a miss
            continue
        same = next((each for each in tried if np.array_equal(each.widths, widths)), None)
        if same is None:
            return limit, widths
        if np.isinf(high):
            break  # the next network is expected to miss the target
        low, high = (limit, high) if same.turn.safe else (low, limit)
    return None


def _best(tried: Sequence[_Tried]) -> _Tried:
    """The slowest network that is safe and no waste, else the slowest fast enough, else the fastest."""
    safe = [each for each in tried if each.turn.safe and each.turn.part >= 1 - MOST_WASTE]
    enough = [each for each in tried if each.turn.part <= 1]
    if safe or enough:
        return max(safe or enough, key=lambda each: each.turn.part)
    return min(tried, key=lambda each: each.turn.part)


def decisive(timings: Mapping[str, Timing], allowed_us: Callable[[float], float]) -> tuple[float, float]:
    """What a network took and what it may take, in the sense in which it is nearer to the limit.

    Where something else disturbs the machine, it need not slow down both networks alike: the target is met
    when both the medians and the undisturbed runs meet it.

    Args:
        timings: Of ``dense`` and ``slim``.
        allowed_us: From the dense network's latency to the one allowed.

    >>> dense = Timing(100.0, 99.0, 101.0, 9, undisturbed_us=90.0)
    >>> slim = Timing(49.0, 48.0, 51.0, 9, undisturbed_us=46.0)
    >>> decisive({"dense": dense, "slim": slim}, lambda dense_us: dense_us / 2)
    (46.0, 45.0)
    """
    dense, slim = timings["dense"], timings["slim"]
    senses = [
        (slim.median_us, allowed_us(dense.median_us)),
        (slim.undisturbed_us, allowed_us(dense.undisturbed_us)),
    ]
    return max(senses, key=lambda pair: pair[0] / pair[1])
