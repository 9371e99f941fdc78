"""Granularities that stay masks: groups become zeros and the network keeps its shape."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hwprune.closed_loop import Turn
from hwprune.device.correction import Correction
from hwprune.device.profile import DeviceProfile
from hwprune.errors import TargetError
from hwprune.graph.record import ExampleInputs
from hwprune.graph.trace import trace_operators
from hwprune.graph.twin import copy_of
from hwprune.groups import MakeMasked
from hwprune.groups.base import Allowance, MaskedGroups
from hwprune.groups.weight import WeightGroups
from hwprune.operators import Operator
from hwprune.plan import Plan, PlanRow
from hwprune.runtime.rows import with_zeros
from hwprune.scope import Finished, Request
from hwprune.surgery.verify import verify
from hwprune.targets import Groups, Keep, LatencyUs, Speedup, Target
from hwprune.zeros_on_device import ZerosLoop, ZerosOnDevice


class MaskScope:
    """The weights of one network as a :class:`~hwprune.scope.Scope`.

    Args:
        request: What is asked for; a latency only for single weights, on a device whose kernels skip zeros.
        make_groups: The granularity.

    Attributes:
        groups: What may become zero.
        allowance: How many groups may stay.
        profile: The device, with a row for every operator.

    Raises:
        TargetError: If the target is a latency that zeros do not shorten, or is out of reach.
        GraphError: If the forward pass fails or nothing can be pruned.
        InputError: If ``keep`` names no weight matrix.
    """

    def __init__(self, request: Request, make_groups: MakeMasked) -> None:
        self._request = request
        self.groups: MaskedGroups = make_groups(request.model, request.keep)
        operators = trace_operators(request.model, request.example_inputs)
        self._zeros: ZerosOnDevice | None = None
        self.allowance: Allowance
        self.dense_predicted_us: float | None
        match request.target:
            case Keep() | Groups() as target:
                self.allowance = self.groups.allowance(target.count_of)
                self.profile = request.localized(operators)
                self.dense_predicted_us = request.dense_us(operators, self.profile)
            case Speedup() | LatencyUs() as latency:
                self._zeros = self._on_device(operators, latency)
                self.allowance = self._zeros.allowance
                self.dense_predicted_us = self._zeros.dense_us

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Turns of the closed loop on the device; none for a number of groups."""
        return self._zeros.turns if self._zeros else ()

    @property
    def correction(self) -> Correction | None:
        """From sums of rows to predictions; ``None`` where nothing prices the network."""
        if self._zeros:
            return self._zeros.correction
        return None if self.dense_predicted_us is None else self.profile.latency.correction

    def predicted_us(self, alive: Tensor) -> float | None:
        """In microseconds; the dense network's, where zeros are not priced."""
        return self._zeros.predicted_us(alive) if self._zeros else self.dense_predicted_us

    def _on_device(self, operators: Sequence[Operator], target: Speedup | LatencyUs) -> ZerosOnDevice:
        request, groups = self._request, self.groups
        _check_skipped(request.profile, groups, target)
        assert isinstance(groups, WeightGroups)  # just checked
        self.profile = request.localized([*operators, *with_zeros(operators)])
        if request.measure:
            request.notify("measuring the dense network and one with zeros")
        loop = ZerosLoop(
            request.unsharded,
            request.example_inputs,
            groups.layers,
            self.profile,
            request.patience,
            request.bench,
        )
        return ZerosOnDevice(groups, operators, loop, target.allowed_us, measure=request.measure)

    def finish(
        self, trained: nn.Module, alive: Tensor, verification_inputs: Sequence[ExampleInputs]
    ) -> Finished:
        """A copy of the network with its zeros, and how many weights every layer has left."""
        model = copy_of(trained)
        difference = verify(trained, model, verification_inputs)
        return Finished(model, self._plan(alive), (), {}, difference.absolute)

    def _plan(self, alive: Tensor) -> Plan:
        counts = self.groups.counts(alive)
        pruned = [
            PlanRow(name, before, after, 1, (name,), None, "weights")
            for name, (before, after) in counts.items()
        ]
        dense = [
            PlanRow(name, weights, weights, 1, (name,), reason, "weights")
            for name, weights, reason in self.groups.left_dense
        ]
        return Plan((*pruned, *dense))


def _check_skipped(profile: DeviceProfile, groups: MaskedGroups, target: Target) -> None:
    """Raises where zeros do not shorten a latency."""
    if isinstance(groups, WeightGroups) and profile.prices_zeros:
        return
    kind = profile.runtime.kind
    reason = (
        "blocks have the same number of zeros everywhere, whatever they cost"
        if profile.prices_zeros
        else f"{kind} multiplies by zeros as by anything else"
    )
    raise TargetError(
        f"groups that become zeros in place cannot be chosen for a latency here: {reason}",
        expected="a target in groups: keep or groups",
        got=target,
        hint="prune channels for a latency, take a device that skips single weights of zero (mnn-sparse), or "
        "give the fraction of groups to keep",
    )
