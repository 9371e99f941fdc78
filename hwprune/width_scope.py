"""Groups that leave a network shorter or narrower: what a target means for them, and who stays in the end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from hwprune.closed_loop import SAFETY, DeviceLoop, Turn, settle_on_device
from hwprune.device.correction import Correction
from hwprune.device.profile import DeviceProfile
from hwprune.errors import InputError, TargetError
from hwprune.groups.costs import (
    MARGIN,
    Budget,
    CountBudget,
    FloatArray,
    LatencyBudget,
    Together,
    Widths,
    check_count,
    limit_within_reach,
    narrowest,
    out_of_reach,
    smallest,
)
from hwprune.groups.least_loss import fit
from hwprune.groups.widths import WidthAllowance, WidthGroups
from hwprune.kept_measurements import Measurement, Versions, forget, kept, measured_once, recalled
from hwprune.network_calibration import Predictor, calibrate
from hwprune.operators import Operator
from hwprune.processes import from_first
from hwprune.runtime.timing import Timing
from hwprune.scope import Request
from hwprune.targets import Groups, Keep, LatencyUs, Speedup

#: The name of a network that was trained to the end, among measurements that are kept.
FINISHED = "finished"


class DenseGroups(WidthGroups, Protocol):
    """Groups that know the widths they started from."""

    @property
    def widths(self) -> Widths:
        """Members of every axis of the dense network, shape ``(axes,)``."""
        ...

    @property
    def together(self) -> Together:
        """Axes that are empty when one of them is."""
        ...


Kind = TypeVar("Kind", bound=DenseGroups)


class WidthScope(Generic[Kind]):
    """What scopes have in common whose groups shorten the latency.

    A scope sets :attr:`groups` and :attr:`profile` and calls this constructor last.

    Args:
        request: What is asked for; any target.
        predictor: Predicts the latency, not yet calibrated.
        loop: Measures.
        operators: Fused operators of the dense network and of all others that may come of it, at full width.

    Attributes:
        groups: What may leave.
        profile: The device, with a row for every operator that has a price.
        allowance: The budget in microseconds or in groups.

    Raises:
        TargetError: If the target is out of reach.
    """

    groups: Kind
    profile: DeviceProfile

    def __init__(
        self, request: Request, predictor: Predictor, loop: DeviceLoop, operators: Sequence[Operator]
    ) -> None:
        self._request, self._predictor = request, predictor
        self._aligns: Widths = np.array(self.groups.aligns, dtype=np.int64)
        self._loop: DeviceLoop | None = None
        self._loop_is_over = False
        sample = self._calibration_sample()
        self._priced = request.prices(operators, self.profile, narrower=not request.measure)
        if self._priced and request.measure:
            self._loop = loop
            request.notify("measuring the dense network and a smaller one")
            further = self._further_sample()
            self._predictor = predictor.corrected(
                from_first(lambda: calibrate(loop, predictor, sample, further))
            )
        self.allowance = WidthAllowance(self.groups, self._budget(), self._settle)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Turns of the closed loop on the device."""
        return tuple(Turn(**turn) for turn in self.allowance.record)

    @property
    def correction(self) -> Correction | None:
        """From sums of rows to predictions; ``None`` where nothing prices the network."""
        return (self._predictor.correction or self.profile.latency.correction) if self._priced else None

    @property
    def dense_predicted_us(self) -> float | None:
        """Predicted latency of the dense network, in microseconds; ``None`` where nothing prices it."""
        return self._predicted(self.groups.widths)

    def predicted_us(self, alive: Tensor) -> float | None:
        """Predicted latency of what lives, in microseconds; ``None`` where an operator has no price."""
        return self._predicted(self.groups.widths_of(alive))

    def _predicted(self, widths: Widths) -> float | None:
        return float(self._predictor.latency_us(widths)) if self._priced else None

    @abstractmethod
    def _calibration_sample(self) -> Sequence[Widths]:
        """Widths to measure before training, the dense ones first."""

    def _further_sample(self) -> Sequence[Widths]:
        """More widths to measure where those say that factor and overhead are not all; none by default."""
        return []

    def known(self, alive: Tensor) -> Turn | None:
        """What an earlier run found of a finished network of these widths.

        Args:
            alive: Shape ``(members,)``: which members are left.
        """
        loop = self._loop
        if loop is None or not isinstance(self._request.target, Speedup | LatencyUs):
            return None
        found = recalled(loop, self._predictor.operators, self._versions(loop, alive))
        return None if found is None else self._finished_turn(alive, found)

    def judged(self, alive: Tensor, timings: Mapping[str, Timing]) -> Turn | None:
        """The finished network as a turn of the closed loop; kept for later runs unless it was disturbed.

        Args:
            alive: Shape ``(members,)``: which members are left.
            timings: Of ``dense`` and ``slim``, as they are delivered.

        Returns:
            ``None`` where no latency is aimed at, or nothing is measured.
        """
        loop = self._loop
        if loop is None or not isinstance(self._request.target, Speedup | LatencyUs):
            return None
        if loop.patience.is_disturbed(timings):
            found = Measurement(_as_finished(timings), "", reused=False)
            return replace(self._finished_turn(alive, found), disturbed=True)
        versions, operators = self._versions(loop, alive), self._predictor.operators
        known = recalled(loop, operators, versions)
        if known is None:  # what decides for one run decides for all
            found = kept(loop, operators, versions, _as_finished(timings))
        else:
            found = Measurement(_as_finished(timings), known.key, reused=False)
        return self._finished_turn(alive, found)

    def _versions(self, loop: DeviceLoop, alive: Tensor) -> Versions:
        """What a finished network is compared with, as measurements are kept."""
        return {"dense": {}, FINISHED: loop.kept(self.groups.widths_of(alive))}

    def _finished_turn(self, alive: Tensor, found: Measurement) -> Turn:
        target = self._request.target
        assert isinstance(target, Speedup | LatencyUs)  # who asks has looked
        dense, slim = found.timings["dense"], found.timings[FINISHED]
        return Turn(
            self.allowance.limit,
            float(self._predictor.latency_us(self.groups.widths_of(alive))),
            slim.median_us,
            target.allowed_us(dense.median_us),
            dense.undisturbed_us,
            found.key,
            found.reused,
            finished=True,
        )

    def aim_lower(self, turn: Turn, alive: Tensor) -> None:
        """Has the next survivors chosen for a lower predicted latency, and from then on by that alone.

        Args:
            turn: Of the finished network that missed the target.
            alive: Shape ``(members,)``: which members are left.

        Raises:
            InputError: If the target is no latency.
            TargetError: If nothing is left to take out that could make it so fast.
        """
        if not isinstance(self.allowance.budget, LatencyBudget):
            raise InputError(
                "only networks that are to meet a latency can be corrected",
                where="Compressor.correct",
                expected="a target of Speedup or LatencyUs",
                got=type(self._request.target).__name__,
            )
        least = smallest(self._aligns, self.groups.widths_of(alive), self.groups.fewest)
        least_us = float(self._predictor.latency_us(least))
        if least_us > turn.corrected_us:
            took = turn.measured_us * least_us / turn.predicted_us
            raise TargetError(
                "nothing is left to take out that would make the network so fast",
                expected=f"at least {took:.1f} us, going by what it takes now "
                f"({narrowest(self.groups.fewest)}; an estimate)",
                got=f"{turn.allowed_us:.1f} us",
                hint="ask for less, prune something else, or start from another network",
            )
        self.allowance.limit, self._loop_is_over = turn.corrected_us, True
        self.allowance.record = [*self.allowance.record, asdict(turn)]

    def _budget(self) -> Budget:
        """The budget that the target stands for; raises where it is out of reach."""
        match self._request.target:
            case Speedup() | LatencyUs() as latency:
                return LatencyBudget(self._predictor.latency_us, self._limit_us(latency.allowed_us))
            case Keep() | Groups() as target:
                count = target.count_of(self.groups.group_count)
                budget = CountBudget(self._aligns, count, self.groups.together)
                check_count(budget, self._aligns, self.groups.widths, self.groups.fewest)
                return budget

    def _limit_us(self, allowed_us: Callable[[float], float]) -> float:
        """The predicted latency to aim at, from the dense network's to the one allowed.

        Raises:
            TargetError: If that is out of reach, by a measurement where there is a device to measure on.
        """
        predict, dense, fewest = self._predictor.latency_us, self.groups.widths, self.groups.fewest
        least = smallest(self._aligns, dense, fewest)
        dense_us, least_us = float(predict(dense)), float(predict(least))
        try:
            return limit_within_reach(allowed_us(dense_us), dense_us, least_us, narrowest(fewest))
        except TargetError:
            if self._loop is None:
                raise
        self._request.notify("predicted to be out of reach: measuring the smallest network there can be")
        loop, operators = self._loop, self._predictor.operators
        networks = {"dense": loop.kept(dense), "least": loop.kept(least)}
        made = from_first(lambda: measured_once(loop, operators, networks))
        dense_took, took = (made.timings[name].undisturbed_us for name in networks)
        allowed = allowed_us(dense_took)
        if took > allowed * (1 - SAFETY):
            forget([made.key])  # whoever asks again may find the machine less disturbed
            raise out_of_reach(allowed, dense_took, took, f"measured for {narrowest(fewest)}", SAFETY)
        # What is predicted for a network that takes as long as is allowed.
        return max(least_us, min(least_us * allowed * (1 - MARGIN) / took, dense_us))

    def _settle(self, allowance: WidthAllowance, losses: Sequence[FloatArray], living: Widths) -> Widths:
        """Chooses the survivors; for a latency target, in a closed loop with the device."""
        budget, target = allowance.budget, self._request.target
        if (
            self._loop is None
            or self._loop_is_over
            or not isinstance(budget, LatencyBudget)
            or not isinstance(target, Speedup | LatencyUs)
        ):
            return allowance.fitted(losses, living)

        def choose(limited: LatencyBudget) -> Widths:
            return fit(limited, losses, living, self._aligns, self.groups.fewest)

        loop, operators = self._loop, self._predictor.operators
        widths, allowance.limit, turns = from_first(
            lambda: settle_on_device(loop, operators, budget, target.allowed_us, choose, self.groups.widths)
        )
        allowance.record = [asdict(turn) for turn in turns]
        return widths


def _as_finished(timings: Mapping[str, Timing]) -> dict[str, Timing]:
    """Timings of what is delivered, by the names under which they are kept."""
    return {"dense": timings["dense"], FINISHED: timings["slim"]}
