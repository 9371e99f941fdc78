"""Groups that leave a network shorter or narrower: what a target means for them, and who stays in the end."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from hwprune.closed_loop import (
    SAFETY,
    DeviceLoop,
    Predictor,
    Turn,
    calibrate,
    settle_on_device,
)
from hwprune.device.profile import DeviceProfile
from hwprune.errors import TargetError
from hwprune.groups.costs import (
    MARGIN,
    NARROWEST,
    Budget,
    CountBudget,
    FloatArray,
    LatencyBudget,
    Widths,
    check_count,
    limit_within_reach,
    out_of_reach,
    smallest,
)
from hwprune.groups.least_loss import fit
from hwprune.groups.widths import WidthAllowance, WidthGroups
from hwprune.kept_measurements import forget, measured_once
from hwprune.operators import Operator
from hwprune.processes import from_first
from hwprune.scope import Request
from hwprune.targets import Groups, Keep, LatencyUs, Speedup


class DenseGroups(WidthGroups, Protocol):
    """Groups that know the widths they started from."""

    @property
    def widths(self) -> Widths:
        """Members of every axis of the dense network, shape ``(axes,)``."""
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
        sample = self._calibration_sample()
        self._priced = request.prices(operators, self.profile, narrower=not request.measure)
        if self._priced and request.measure:
            self._loop = loop
            request.notify("measuring the dense network and a smaller one")
            self._predictor = predictor.with_calibration(
                *from_first(lambda: calibrate(loop, predictor, sample))
            )
        self.allowance = WidthAllowance(self.groups, self._budget(), self._settle)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Turns of the closed loop on the device."""
        return tuple(Turn(**turn) for turn in self.allowance.record)

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

    def _budget(self) -> Budget:
        """The budget that the target stands for; raises where it is out of reach."""
        match self._request.target:
            case Speedup() | LatencyUs() as latency:
                return LatencyBudget(self._predictor.latency_us, self._limit_us(latency.allowed_us))
            case Keep() | Groups() as target:
                budget = CountBudget(self._aligns, target.count_of(self.groups.group_count))
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
            return limit_within_reach(allowed_us(dense_us), dense_us, least_us, NARROWEST[fewest])
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
            raise out_of_reach(allowed, dense_took, took, f"measured for {NARROWEST[fewest]}", SAFETY)
        # What is predicted for a network that takes as long as is allowed.
        return max(least_us, min(least_us * allowed * (1 - MARGIN) / took, dense_us))

    def _settle(self, allowance: WidthAllowance, losses: Sequence[FloatArray], living: Widths) -> Widths:
        """Chooses the survivors; for a latency target, in a closed loop with the device."""
        budget, target = allowance.budget, self._request.target
        if (
            self._loop is None
            or not isinstance(budget, LatencyBudget)
            or not isinstance(target, Speedup | LatencyUs)
        ):
            return allowance.fitted(losses, living)

        def choose(limited: LatencyBudget) -> Widths:
            return fit(limited, losses, living, self._aligns, self.groups.fewest)

        loop, operators = self._loop, self._predictor.operators
        widths, allowance.limit, turns = from_first(
            lambda: settle_on_device(loop, operators, budget, target.allowed_us, choose)
        )
        allowance.record = [asdict(turn) for turn in turns]
        return widths
