"""Channels and whole residual branches in one budget: a branch leaves with the last channels inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from hwprune.branch_scope import all_operators, pin_branches
from hwprune.channel_scope import ChannelScope
from hwprune.channel_widths import predictor_of
from hwprune.depth_widths import DepthPredictor, NarrowerRecordings, axes_within
from hwprune.graph.axes import BoolArray
from hwprune.graph.branches import Branch, find_branches
from hwprune.graph.coupling import find_axes
from hwprune.groups.channel import ChannelGroups, Tail
from hwprune.network_calibration import Predictor
from hwprune.operators import Operator
from hwprune.plan import Plan, PlanRow, axis_aligns, pin, producing_modules
from hwprune.processes import from_first
from hwprune.scope import Request
from hwprune.surgery.bypass import Bypass, absences_in, prove_branches
from hwprune.surgery.prove import prove
from hwprune.surgery.stand_in import take_out

#: Why a branch stays that has no channels of its own.
NO_CHANNELS = "none of its channels may leave by themselves"


class DepthScope(ChannelScope):
    """The channels and residual branches of one network as a :class:`~hwprune.scope.Scope`.

    Args:
        request: What is asked for; any target.

    Raises:
        GraphError: If the forward pass fails or nothing can be pruned.
        TargetError: If the target is out of reach.
        InputError: If ``keep`` names neither an axis nor a branch.
    """

    def _find(self, request: Request) -> tuple[Predictor, Sequence[Operator]]:
        model, example_inputs = request.model, request.example_inputs
        self._recording, branches = find_branches(model, example_inputs)
        axes = find_axes(model, example_inputs)
        of_axes = {module for axis in axes for module in producing_modules(axis)}
        of_branches = {name for branch in branches for name in (branch.name, *branch.modules)}
        axes = pin(axes, [name for name in request.keep if name not in of_branches - of_axes])
        branches = _with_kept_layers(
            pin_branches(branches, [name for name in request.keep if name in of_branches]), request.keep
        )
        whole = {name for branch in branches if branch.name in request.keep for name in branch.modules}
        axes = tuple(
            replace(axis, pinned=axis.pinned or "kept on request")
            if any(
                f"{module}.".startswith(f"{name}.") for module in producing_modules(axis) for name in whole
            )
            else axis
            for axis in axes
        )
        operators = all_operators(self._recording, [each for each in branches if each.pinned is None])
        self.profile = request.localized(operators)
        aligns = axis_aligns(axes, operators, self.profile)
        proven = from_first(lambda: prove(model, axes, example_inputs, aligns, fold=True))
        self._axes, self._folded = proven.axes, proven.folded
        tried = from_first(lambda: prove_branches(model, self._recording, branches, example_inputs))
        within = [axes_within(bypass.branch, proven.axes) for bypass in tried]
        self._bypasses = tuple(
            bypass
            if bypass.branch.pinned or names
            else replace(bypass, branch=replace(bypass.branch, pinned=NO_CHANNELS))
            for bypass, names in zip(tried, within, strict=True)
        )
        self._tails = tuple(
            (bypass, Tail(names, bypass.branch.parameters))
            for bypass, names in zip(self._bypasses, within, strict=True)
            if bypass.branch.pinned is None
        )
        self.groups = ChannelGroups(model, proven.axes, aligns, [tail for _bypass, tail in self._tails])
        if not self._tails:
            request.notify("no residual branch may leave as a whole: only channels do")
            return predictor_of(operators, proven, self.groups, self.profile), operators
        recordings = NarrowerRecordings.of(
            request.unsharded, self._recording, self.groups.axes, self.groups.aligns, example_inputs
        )
        predictor = DepthPredictor(
            recordings,
            tuple(bypass.branch for bypass, _tail in self._tails),
            tuple(tuple(axes) for axes in self.groups.together),
            self.groups.widths,
            self.profile,
        )
        return predictor, operators

    def _outside(self, kept: Mapping[str, BoolArray]) -> Mapping[str, BoolArray]:
        inside = {name for _bypass, tail in self._gone(kept) for name in tail.axes}
        return {name: mask for name, mask in kept.items() if name not in inside}

    def _take_out(self, slim: nn.Module, kept: Mapping[str, BoolArray]) -> None:
        gone = [bypass for bypass, _tail in self._gone(kept)]
        if gone:
            take_out(slim, absences_in(slim, self._recording, gone, self._request.example_inputs))

    def _gone(self, kept: Mapping[str, BoolArray]) -> list[tuple[Bypass, Tail]]:
        """The branches of which some axis has no channel left."""
        empty = {name for name, mask in kept.items() if not mask.any()}
        return [(bypass, tail) for bypass, tail in self._tails if empty.intersection(tail.axes)]

    def _plan_of(self, alive: Tensor) -> Plan:
        """The axes, and after them the branches."""
        rows = [self._row(bypass, alive) for bypass in self._bypasses]
        plan = super()._plan_of(alive)
        return replace(plan, rows=(*plan.rows, *rows))

    def _row(self, bypass: Bypass, alive: Tensor) -> PlanRow:
        """A branch, and the latency of the network with and without it, all others being as they are."""
        branch, widths = bypass.branch, self.groups.widths_of(alive)
        tied = tuple(dict.fromkeys(name.rpartition(".")[0] for name in branch.parameters))
        places = next(
            (
                list(axes)
                for (tried, _tail), axes in zip(self._tails, self.groups.together, strict=True)
                if tried is bypass
            ),
            None,
        )
        if places is None:
            return PlanRow(branch.name, 1, 1, 1, tied, branch.pinned, "branches")
        networks = np.tile(self._there(widths, places[0]), (2, 1))
        networks[0, places] = 0
        latencies = self._predictor.latency_us(networks).tolist() if self._priced else []
        steps = tuple((count, round(us, 2)) for count, us in enumerate(latencies))
        left = int((widths[places] > 0).all())
        return PlanRow(branch.name, 1, left, 1, tied, None, "branches", staircase=steps)


def _with_kept_layers(branches: Sequence[Branch], keep: Sequence[str]) -> tuple[Branch, ...]:
    """The branches; those stay that hold a layer which is to be kept."""
    return tuple(
        replace(branch, pinned=branch.pinned or "kept on request")
        if any(f"{name}.".startswith(f"{module}.") for name in keep for module in branch.modules)
        else branch
        for branch in branches
    )
