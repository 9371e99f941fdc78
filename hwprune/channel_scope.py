"""Channels: they leave, the network becomes narrower and faster, and the device says by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.channel_widths import predictor_of
from hwprune.closed_loop import DeviceLoop
from hwprune.graph.axes import BoolArray
from hwprune.graph.coupling import find_axes
from hwprune.graph.record import ExampleInputs
from hwprune.graph.trace import trace_operators
from hwprune.groups.channel import ChannelGroups
from hwprune.groups.costs import Widths
from hwprune.groups.order import ranking
from hwprune.groups.widths import Ranking
from hwprune.network_calibration import Predictor
from hwprune.operators import Operator
from hwprune.plan import Plan, Staircase, axis_aligns, make_plan, pin
from hwprune.processes import from_first
from hwprune.scope import Finished, Request
from hwprune.surgery.fold import fold_constants
from hwprune.surgery.prove import prove
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.verify import verify
from hwprune.train.elimination import eliminate
from hwprune.width_scope import WidthScope

#: Parts of all channels at which networks are measured besides the half of them, where that is not enough.
FURTHER_PARTS = (0.9, 0.8, 0.7, 0.6)


class ChannelScope(WidthScope[ChannelGroups]):
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
        predictor, operators = self._find(request)
        loop = DeviceLoop(
            partial(self._built, request.unsharded),
            request.example_inputs,
            self.groups.axes,
            self.profile,
            request.patience,
            request.bench,
        )
        super().__init__(request, predictor, loop, operators)

    def _find(self, request: Request) -> tuple[Predictor, Sequence[Operator]]:
        """Finds what may leave; sets :attr:`groups` and :attr:`profile`.

        Returns:
            What predicts the latency, and the fused operators of all networks that may come of it.
        """
        model, example_inputs = request.model, request.example_inputs
        operators = trace_operators(model, example_inputs)
        axes = pin(find_axes(model, example_inputs), request.keep)
        # Measured and tried once: what differs from process to process would make the processes differ.
        self.profile = request.localized(operators)
        aligns = axis_aligns(axes, operators, self.profile)
        proven = from_first(lambda: prove(model, axes, example_inputs, aligns, fold=True))
        self._axes, self._folded = proven.axes, proven.folded
        self.groups = ChannelGroups(model, proven.axes, aligns)
        return predictor_of(operators, proven, self.groups, self.profile), operators

    def _built(self, model: nn.Module, kept: Mapping[str, BoolArray]) -> nn.Module:
        """A narrower copy of the network with what is kept of each axis, for its latency."""
        slim = rebuild(model, self.groups.axes, self._outside(kept))
        self._take_out(slim, kept)
        return slim

    def _outside(self, kept: Mapping[str, BoolArray]) -> Mapping[str, BoolArray]:
        """What is kept of those axes that do not leave with a whole branch: of all, where none does."""
        return kept

    def _take_out(self, slim: nn.Module, kept: Mapping[str, BoolArray]) -> None:
        """Takes branches out of a narrower network, in place, where they leave."""

    def rank_on(self, inputs: ExampleInputs) -> None:
        """Lets channels survive by what the layers that read them lose, not by their norms.

        Args:
            inputs: What the network is called with, some hundreds; held in memory until the survivors are
                chosen.
        """

        def rank(norms: Tensor, alive: Tensor) -> Ranking:
            self._request.notify("choosing channels by what the layers that read them would lose")
            flags = torch.split(alive, self.groups.widths.tolist())
            orders = eliminate(self._request.model, self.groups.axes, self.groups.aligns, flags, inputs)
            self.allowance.rank = self.allowance.by_norm  # the inputs are of no more use
            return (
                ranking(self.groups, norms, alive, orders) if orders else self.allowance.by_norm(norms, alive)
            )

        self.allowance.rank = rank

    def preview(self) -> Plan:
        """The plan before training: what may shrink, what cannot and why, and what it would free."""
        return self._plan_of(torch.ones(self.groups.member_count, dtype=torch.bool))

    def finish(
        self, trained: nn.Module, alive: Tensor, verification_inputs: Sequence[ExampleInputs]
    ) -> Finished:
        """Rebuilds the network without what is dead, and verifies it.

        Raises:
            VerificationError: If slim and masked differ.
        """
        every, axes = self.groups.kept(alive), self.groups.axes
        kept = dict(self._outside(every))
        slim = rebuild(trained, axes, kept)
        biases: tuple[str, ...] = ()
        if self._folded:
            biases = fold_constants(trained, slim, axes, kept, self._request.example_inputs)
        self._take_out(slim, every)
        there = dict(slim.named_modules())
        biases = tuple(name for name in biases if hasattr(there.get(name), "bias"))  # not in what left
        difference = verify(trained, slim, verification_inputs, axes=axes, kept=kept)
        plan = self._plan_of(alive)
        return Finished(slim, plan, axes, kept, difference.absolute, biases=biases)

    def _plan_of(self, alive: Tensor) -> Plan:
        """The plan with what is left."""
        kept, staircases = self.groups.kept(alive), self._staircases(self.groups.widths_of(alive))
        return make_plan(self._axes, self.groups, kept, staircases, self._folded)

    def _staircases(self, widths: Widths) -> dict[str, Staircase]:
        """The whole network's predicted latency over the width of every axis, the others being ``widths``.

        Returns:
            Axis name to staircase; nothing where an operator has no price.
        """
        found: dict[str, Staircase] = {}
        if not self._priced:
            return found
        for index, axis in enumerate(self.groups.axes):
            align = int(self._aligns[index])
            steps = [*range(int(self.groups.fewest[index]) * align, axis.width, align), axis.width]
            if int(widths[index]) not in steps:
                steps = sorted([*steps, int(widths[index])])
            networks = np.tile(self._there(widths, index), (len(steps), 1))
            networks[:, index] = steps
            latencies = self._predictor.latency_us(networks)
            found[axis.name] = tuple(
                (int(step), round(float(us), 2)) for step, us in zip(steps, latencies, strict=True)
            )
        return found

    def _there(self, widths: Widths, index: int) -> Widths:
        """The widths with everything whole that is empty only because one axis is."""
        whole = widths.copy()
        for axes in self.groups.together:
            if index in axes:
                whole[list(axes)] = np.where(widths > 0, widths, self.groups.widths)[list(axes)]
        return whole

    def _calibration_sample(self) -> list[Widths]:
        """Dense, and half of the channels of every axis."""
        return [self.groups.widths, self._part_of_all(0.5)]

    def _further_sample(self) -> list[Widths]:
        """Between those two, where the weights may come to fit into a cache."""
        return [self._part_of_all(part) for part in FURTHER_PARTS]

    def _part_of_all(self, part: float) -> Widths:
        """Widths with so much of every axis, in whole groups."""
        steps = np.ceil(self.groups.widths * part / self._aligns).astype(np.int64)
        return np.asarray(np.minimum(steps * self._aligns, self.groups.widths))
