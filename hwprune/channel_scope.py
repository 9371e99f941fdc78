"""Channels: they leave, the network becomes narrower and faster, and the device says by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
from torch import Tensor, nn

from hwprune.closed_loop import MARGIN, DeviceLoop, Turn, calibrate, settle_on_device
from hwprune.device.predict import WidthPredictor
from hwprune.graph.coupling import find_axes
from hwprune.graph.record import ExampleInputs
from hwprune.graph.trace import trace_operators
from hwprune.groups.channel import ChannelGroups
from hwprune.groups.costs import (
    Budget,
    CountBudget,
    FloatArray,
    LatencyBudget,
    Widths,
    check_reachable,
    fit,
)
from hwprune.groups.widths import WidthAllowance
from hwprune.plan import Plan, Staircase, axis_aligns, make_plan, pin
from hwprune.processes import from_first
from hwprune.scope import Finished, Request
from hwprune.surgery.prove import prove
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.verify import verify
from hwprune.targets import Groups, Keep, LatencyUs, Speedup


class ChannelScope:
    """The channels of one network as a :class:`~hwprune.scope.Scope`.

    Args:
        request: What is asked for; any target.

    Attributes:
        groups: The channels.
        allowance: The budget in microseconds or in groups.
        profile: The device, with a row for every operator.

    Raises:
        GraphError: If the forward pass fails or nothing can be pruned.
        TargetError: If the target is out of reach.
        InputError: If ``keep`` names no axis.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        model, example_inputs = request.model, request.example_inputs
        operators = trace_operators(model, example_inputs)
        axes = pin(find_axes(model, example_inputs), request.keep)
        # Measured and tried once: what differs from process to process would make the processes differ.
        self.profile = request.localized(operators)
        aligns = axis_aligns(axes, operators, self.profile)
        proven = from_first(lambda: prove(model, axes, example_inputs, aligns))
        self._axes = proven.axes
        self.groups = ChannelGroups(model, proven.axes, aligns)
        self._aligns: Widths = np.array(self.groups.aligns, dtype=np.int64)
        columns = [proven.axes.index(axis) for axis in self.groups.axes]
        self._predictor = WidthPredictor(
            operators,
            proven.in_loss[:, columns],
            proven.out_loss[:, columns],
            self.groups.widths,
            self.profile,
        )
        self._loop: DeviceLoop | None = None
        if request.measure:
            self._loop = DeviceLoop(
                request.unsharded, example_inputs, self.groups.axes, self.profile, request.bench
            )
            request.notify("measuring the dense network and a narrower one")
            self._predictor = self._predictor.with_calibration(*from_first(self._calibration))
        self.allowance = WidthAllowance(self.groups, self._budget(), self._settle)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Turns of the closed loop on the device."""
        return tuple(Turn(**turn) for turn in self.allowance.record)

    def preview(self) -> Plan:
        """The plan before training: what may shrink, what cannot and why, and what it would free."""
        dense = self.groups.widths
        return make_plan(self._axes, self.groups, {}, self._staircases(dense))

    @property
    def dense_predicted_us(self) -> float:
        """Predicted latency of the dense network, in microseconds."""
        return float(self._predictor.latency_us(self.groups.widths))

    def predicted_us(self, alive: Tensor) -> float:
        """Predicted latency at the living widths, in microseconds."""
        return float(self._predictor.latency_us(self.groups.widths_of(alive)))

    def finish(
        self, trained: nn.Module, alive: Tensor, verification_inputs: Sequence[ExampleInputs]
    ) -> Finished:
        """Rebuilds the network without the dead channels, and verifies it.

        Raises:
            VerificationError: If slim and masked differ.
        """
        kept = self.groups.kept(alive)
        axes = self.groups.axes
        slim = rebuild(trained, axes, kept)
        difference = verify(trained, slim, verification_inputs, axes=axes, kept=kept)
        plan = make_plan(self._axes, self.groups, kept, self._staircases(self.groups.widths_of(alive)))
        return Finished(slim, plan, axes, kept, difference.absolute)

    def _staircases(self, widths: Widths) -> dict[str, Staircase]:
        """The whole network's predicted latency over the width of every axis, the others being ``widths``."""
        found = {}
        for index, axis in enumerate(self.groups.axes):
            steps = [*range(self._aligns[index], axis.width, self._aligns[index]), axis.width]
            if int(widths[index]) not in steps:
                steps = sorted([*steps, int(widths[index])])
            networks = np.tile(widths, (len(steps), 1))
            networks[:, index] = steps
            latencies = self._predictor.latency_us(networks)
            found[axis.name] = tuple(
                (int(step), round(float(us), 2)) for step, us in zip(steps, latencies, strict=True)
            )
        return found

    def _calibration(self) -> tuple[float, float]:
        """Factor and overhead of the prediction, from measurements."""
        assert self._loop is not None  # asked for only where there is something to measure with
        return calibrate(self._loop, self._predictor, self._calibration_sample())

    def _calibration_sample(self) -> list[Widths]:
        """Dense, and halfway between dense and the narrowest network in every axis."""
        halves = np.ceil(self.groups.widths / 2 / self._aligns).astype(np.int64) * self._aligns
        return [self.groups.widths, np.minimum(halves, self.groups.widths)]

    def _budget(self) -> Budget:
        """The budget that the target stands for; raises where it is out of reach."""
        dense_us = self.dense_predicted_us
        match self._request.target:
            case Speedup(factor):
                return self._latency_budget(dense_us / factor, slack=factor > 1)
            case LatencyUs(microseconds):
                return self._latency_budget(microseconds, slack=microseconds < dense_us)
            case Keep() | Groups() as target:
                return self._count_budget(target.count_of(self.groups.group_count))

    def _latency_budget(self, limit_us: float, *, slack: bool) -> LatencyBudget:
        budget = LatencyBudget(self._predictor.latency_us, limit_us)
        check_reachable(budget, self._aligns, self.groups.widths, "us")
        return replace(budget, limit=limit_us * (1 - MARGIN)) if slack else budget

    def _count_budget(self, count: int) -> CountBudget:
        budget = CountBudget(self._aligns, count)
        check_reachable(budget, self._aligns, self.groups.widths, "groups")
        return budget

    def _settle(self, allowance: WidthAllowance, scores: list[FloatArray], living: Widths) -> Widths:
        """Chooses the survivors; for a latency target, in a closed loop with the device."""
        budget = allowance.budget
        if self._loop is None or not isinstance(budget, LatencyBudget):
            return allowance.fitted(scores, living)

        def choose(limited: LatencyBudget) -> Widths:
            return fit(limited, scores, living, self._aligns)

        loop = self._loop
        widths, allowance.limit, turns = from_first(
            lambda: settle_on_device(loop, budget, self._allowed_us, choose)
        )
        allowance.record = [asdict(turn) for turn in turns]
        return widths

    def _allowed_us(self, dense_us: float) -> float:
        match self._request.target:
            case Speedup(factor):
                return dense_us / factor
            case LatencyUs(microseconds):
                return microseconds
            case _:
                return float("inf")
