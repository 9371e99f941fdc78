"""The compressor: two lines in anybody's training loop.

::

    compressor = hwprune.Compressor(model, example_inputs, profile, hwprune.Speedup(2.0), total_steps=n)
    optimizer = compressor.wrap(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    ...                                # backward(), optimizer.step(), as ever
    result = compressor.finish()       # result.model is the slim network
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from hwprune.closed_loop import MARGIN, DeviceLoop, Turn, calibrate, settle_on_device
from hwprune.device.predict import WidthPredictor
from hwprune.device.profile import DeviceProfile
from hwprune.graph.axes import BoolArray, ChannelAxis
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
from hwprune.penalties import make_penalty
from hwprune.plan import Plan, axis_aligns, make_plan, pin
from hwprune.runtime.local import localize
from hwprune.surgery.prove import prove
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.verify import Difference, verify
from hwprune.targets import Groups, Keep, LatencyUs, Speedup, Target
from hwprune.train.prox import ProximalStep
from hwprune.train.schedule import StrengthSchedule

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What the compression came to, before anything is exported.

    Attributes:
        groups: ``total``, ``kept`` and ``budget`` (groups, or microseconds predicted).
        predicted_us: Predicted latency of ``dense`` and ``slim``.
        turns: Turns of the closed loop on the device.
        max_abs_difference: Slim against masked, in PyTorch.
    """

    groups: dict[str, float]
    predicted_us: dict[str, float]
    turns: tuple[Turn, ...]
    max_abs_difference: float


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A finished compression.

    Attributes:
        model: The slim network.
        plan: What went, what stayed and why.
        report: Numbers.
        axes: The channel axes that could shrink.
        kept: Axis name to the mask of its kept channels.
    """

    model: nn.Module
    plan: Plan
    report: Report
    axes: tuple[ChannelAxis, ...]
    kept: dict[str, BoolArray]


class Compressor:
    """Prunes a network while it is trained, to a target on a device.

    Args:
        model: The network; trained and masked in place, never narrowed.
        example_inputs: A tensor, a sequence of arguments or a mapping of keyword arguments.
        profile: The device.
        target: :class:`Speedup`, :class:`LatencyUs`, :class:`Keep` or :class:`Groups`.
        total_steps: Optimiser steps of the whole training.
        penalty: A name from :func:`hwprune.penalties.penalty_names`.
        schedule: Strength per step; chosen from ``total_steps`` by default.
        keep: Names of axes (or of modules that produce them) that must stay whole.
        measure: Whether to measure on this machine, to correct the prediction and to settle.
            Without it the target is met in prediction only.
        notify: Called with one line for everything the user should know; logged by default.

    Raises:
        GraphError: If the forward pass fails or nothing can be pruned.
        TargetError: If the target is out of reach; the message gives the fastest the device can be.
        InputError: If an argument is wrong.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs,
        profile: DeviceProfile,
        target: Target,
        *,
        total_steps: int,
        penalty: str = "envelope",
        schedule: StrengthSchedule | None = None,
        keep: Sequence[str] = (),
        measure: bool = True,
        notify: Callable[[str], None] = logger.info,
    ) -> None:
        self.model, self.example_inputs, self.target = model, example_inputs, target
        operators = trace_operators(model, example_inputs)
        axes = pin(find_axes(model, example_inputs), keep)
        self.profile = localize(profile, operators, notify=notify)
        aligns = axis_aligns(axes, operators, self.profile)
        self.proven = prove(model, axes, example_inputs, aligns)
        self.groups = ChannelGroups(model, self.proven.axes, aligns)
        self._aligns: Widths = np.array(self.groups.aligns, dtype=np.int64)
        columns = [self.proven.axes.index(axis) for axis in self.groups.axes]
        self.predictor = WidthPredictor(
            operators,
            self.proven.in_loss[:, columns],
            self.proven.out_loss[:, columns],
            self.groups.widths,
            self.profile,
        )
        self._loop = DeviceLoop(model, example_inputs, self.groups.axes, self.profile) if measure else None
        if self._loop is not None:
            notify("measuring the dense network and a narrower one on this machine")
            self.predictor = calibrate(self._loop, self.predictor, self._calibration_sample())
        budget = self._budget()
        self.turns: tuple[Turn, ...] = ()
        self.proximal = ProximalStep(
            self.groups,
            make_penalty(penalty),
            WidthAllowance(self.groups, budget, self._settle),
            schedule or StrengthSchedule(total_steps),
        )

    def wrap(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Attaches the pruning to ``optimizer``; returns the same optimiser.

        Raises:
            InputError: If it updates none of the prunable parameters, or one is attached already.
        """
        return self.proximal.attach(optimizer)

    def finish(self, verification_inputs: Sequence[ExampleInputs] = ()) -> Result:
        """Settles the support if that has not happened yet, rebuilds and verifies.

        Args:
            verification_inputs: Real inputs to verify on, besides the example inputs.

        Raises:
            VerificationError: If slim and masked differ.
        """
        self.proximal.settle()
        kept = self.groups.kept(self.proximal.alive)
        slim = rebuild(self.model, self.groups.axes, kept)
        difference = verify(
            self.model,
            slim,
            [self.example_inputs, *verification_inputs],
            axes=self.groups.axes,
            kept=kept,
        )
        plan = make_plan(self.proven.axes, self.groups, kept)
        return Result(slim, plan, self._report(difference), self.groups.axes, kept)

    @property
    def dense_predicted_us(self) -> float:
        """Predicted latency of the dense network, in microseconds."""
        return float(self.predictor.latency_us(self.groups.widths))

    @property
    def predicted_us(self) -> float:
        """Predicted latency at the present widths, in microseconds."""
        return float(self.predictor.latency_us(self.groups.widths_of(self.proximal.alive)))

    def _report(self, difference: Difference) -> Report:
        return Report(
            groups={
                "total": self.groups.group_count,
                "kept": self.proximal.groups_alive,
                "budget": self.proximal.allowance.limit,
            },
            predicted_us={
                "dense": self.dense_predicted_us,
                "slim": self.predicted_us,
            },
            turns=self.turns,
            max_abs_difference=difference.absolute,
        )

    def _calibration_sample(self) -> list[Widths]:
        """Dense, and halfway between dense and the narrowest network in every axis."""
        halves = np.ceil(self.groups.widths / 2 / self._aligns).astype(np.int64) * self._aligns
        return [self.groups.widths, np.minimum(halves, self.groups.widths)]

    def _budget(self) -> Budget:
        """The budget that the target stands for; raises where it is out of reach."""
        dense_us = self.dense_predicted_us
        match self.target:
            case Speedup(factor):
                return self._latency_budget(dense_us / factor, slack=factor > 1)
            case LatencyUs(microseconds):
                return self._latency_budget(microseconds, slack=microseconds < dense_us)
            case Keep(fraction):
                # A hair above, so that 0.3 of 10 is 3 in spite of binary fractions.
                return self._count_budget(int(fraction * self.groups.group_count + 1e-9))
            case Groups(count):
                return self._count_budget(count)

    def _latency_budget(self, limit_us: float, *, slack: bool) -> LatencyBudget:
        budget = LatencyBudget(self.predictor.latency_us, limit_us)
        check_reachable(budget, self._aligns, self.groups.widths, "us")
        return replace(budget, limit=limit_us * (1 - MARGIN)) if slack else budget

    def _count_budget(self, count: int) -> CountBudget:
        budget = CountBudget(self._aligns, min(count, self.groups.group_count))
        check_reachable(budget, self._aligns, self.groups.widths, "groups")
        return budget

    def _settle(self, allowance: WidthAllowance, scores: list[FloatArray], living: Widths) -> Widths:
        """Chooses the survivors; for a latency target, in a closed loop with the device."""
        budget = allowance.budget
        if self._loop is None or not isinstance(budget, LatencyBudget):
            return allowance.fitted(scores, living)

        def choose(limited: LatencyBudget) -> Widths:
            return fit(limited, scores, living, self._aligns)

        widths, allowance.budget, self.turns = settle_on_device(self._loop, budget, self._allowed_us, choose)
        return widths

    def _allowed_us(self, dense_us: float) -> float:
        match self.target:
            case Speedup(factor):
                return dense_us / factor
            case LatencyUs(microseconds):
                return microseconds
            case _:
                return float("inf")
