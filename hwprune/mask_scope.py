"""Granularities that stay masks: groups become zeros and the network keeps its shape."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from hwprune.closed_loop import Turn
from hwprune.device.predict import predict_operators
from hwprune.errors import TargetError
from hwprune.graph.record import ExampleInputs
from hwprune.graph.trace import trace_operators
from hwprune.groups import MakeMasked
from hwprune.plan import Plan, PlanRow
from hwprune.scope import Finished, Request
from hwprune.surgery.verify import verify
from hwprune.targets import Groups, Keep


class MaskScope:
    """The weights of one network as a :class:`~hwprune.scope.Scope`.

    Args:
        request: What is asked for; its target counts groups.
        make_groups: The granularity.

    Attributes:
        groups: What may become zero.
        allowance: How many groups may stay.
        profile: The device, with a row for every operator.
        turns: None: a network of the same shape takes as long as before.

    Raises:
        TargetError: If the target is a latency.
        GraphError: If the forward pass fails or nothing can be pruned.
        InputError: If ``keep`` names no weight matrix.
    """

    turns: tuple[Turn, ...] = ()

    def __init__(self, request: Request, make_groups: MakeMasked) -> None:
        target = request.target
        if not isinstance(target, Keep | Groups):
            raise TargetError(
                "groups that become zeros in place do not shorten a latency that any table knows",
                expected="a target in groups: keep or groups",
                got=target,
                hint="prune channels for a latency, or give the fraction of groups to keep",
            )
        self._request = request
        self.groups = make_groups(request.model, request.keep)
        self.allowance = self.groups.allowance(target.count_of)
        operators = trace_operators(request.model, request.example_inputs)
        self.profile = request.localized(operators)
        self.dense_predicted_us = predict_operators(operators, self.profile).total_us

    def predicted_us(self, alive: Tensor) -> float:
        """The dense network's, in microseconds."""
        return self.dense_predicted_us

    def finish(
        self, trained: nn.Module, alive: Tensor, verification_inputs: Sequence[ExampleInputs]
    ) -> Finished:
        """A copy of the network with its zeros, and how many weights every layer has left."""
        model = copy.deepcopy(trained)
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
