"""Filter shapes: positions become zeros while the network is trained, convolutions smaller in the end."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hwprune.closed_loop import Turn
from hwprune.device.correction import Correction
from hwprune.errors import TargetError, VerificationError
from hwprune.graph.axes import BoolArray, ChannelAxis
from hwprune.graph.coupling import find_axes
from hwprune.graph.record import ExampleInputs, record
from hwprune.graph.steering import refuse_steered
from hwprune.graph.trace import trace_operators
from hwprune.graph.twin import copy_of
from hwprune.groups.shape import ShapeGroups
from hwprune.plan import Plan, PlanRow, axis_aligns
from hwprune.processes import from_first
from hwprune.scope import Finished, Request
from hwprune.shape_choice import Choice, choose_forms, time_networks
from hwprune.surgery.forms import reshape
from hwprune.surgery.prove import prove
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.unread import unread_channels
from hwprune.surgery.verify import verify
from hwprune.targets import Groups, Keep


class ShapeScope:
    """The kernel positions of one network as a :class:`~hwprune.scope.Scope`.

    Args:
        request: What is asked for; its target counts groups.

    Attributes:
        groups: The positions.
        allowance: How many may stay.
        profile: The device, with a row for every operator of the dense network.
        turns: None: no latency is aimed at.
        dense_predicted_us: Predicted latency of the dense network, in microseconds; ``None`` without prices.

    Raises:
        TargetError: If the target is a latency.
        GraphError: If the forward pass fails or no layer has filter shapes.
        InputError: If ``keep`` names no weight matrix.
    """

    turns: tuple[Turn, ...] = ()

    def __init__(self, request: Request) -> None:
        target = request.target
        if not isinstance(target, Keep | Groups):
            raise TargetError(
                "filter shapes cannot be chosen for a latency: "
                "what a position saves is known only when its layer is built",
                expected="a target in groups: keep or groups",
                got=target,
                hint="prune channels for a latency, or give the fraction of positions to keep",
            )
        self._request = request
        self.groups = ShapeGroups(request.model, request.keep)
        self.allowance = self.groups.allowance(target.count_of)
        # Channels that nothing reads are followed in the end, when a refusal would cost the training.
        refuse_steered(request.model, record(request.model, request.example_inputs))
        operators = trace_operators(request.model, request.example_inputs)
        self.profile = request.localized(operators)
        self.dense_predicted_us = request.dense_us(operators, self.profile)
        self._saved_us = 0.0

    @property
    def correction(self) -> Correction | None:
        """From sums of rows to predictions; ``None`` where nothing prices the network."""
        return None if self.dense_predicted_us is None else self.profile.latency.correction

    def predicted_us(self, alive: Tensor) -> float | None:
        """The dense network's, less what its layers were measured to save by their forms.

        Args:
            alive: Shape ``(members,)``; forms are chosen in :meth:`finish`, and nothing is saved before.
        """
        if self.dense_predicted_us is None:
            return None
        return max(self.dense_predicted_us - self._saved_us, 0.0)

    def finish(
        self, trained: nn.Module, alive: Tensor, verification_inputs: Sequence[ExampleInputs]
    ) -> Finished:
        """Cuts channels that nothing reads and gives every convolution the form that is fastest.

        Raises:
            VerificationError: If slim and masked differ.
        """
        request = self._request
        axes, kept = self._unread(trained, verification_inputs)
        model = rebuild(trained, axes, kept)
        layers = [name for name, _counts in self.groups.counts(alive).items()]
        bench = request.bench if request.measure else None
        if request.measure:
            request.notify("timing every convolution as it is, cropped and lowered")
        choices = from_first(lambda: choose_forms(model, layers, request.example_inputs, self.profile, bench))
        forms = tuple(choice.form for choice in choices.values() if choice.form is not None)
        slim = copy_of(model)
        reshape(slim, forms)
        difference = verify(trained, slim, verification_inputs, axes=axes, kept=kept)
        self._saved_us = sum(choice.saved_us for choice in choices.values())
        plan = self._plan_of_forms(alive, choices)
        return Finished(slim, plan, axes, kept, difference.absolute, forms=forms)

    def _unread(
        self, trained: nn.Module, verification_inputs: Sequence[ExampleInputs]
    ) -> tuple[tuple[ChannelAxis, ...], dict[str, BoolArray]]:
        """The channel axes, and what stays of those with channels that no filter reads any more."""
        example_inputs = self._request.example_inputs
        axes = find_axes(trained, example_inputs)
        aligns = axis_aligns(axes, trace_operators(trained, example_inputs), self.profile)
        unread = unread_channels(trained, axes, aligns)
        concerned = [axis for axis in axes if axis.name in unread]
        if not concerned:
            return axes, {}
        proven = from_first(lambda: prove(trained, concerned, example_inputs, aligns))
        kept = {axis.name: unread[axis.name] for axis in proven.axes if axis.pinned is None}
        if not kept:
            return axes, {}
        try:
            verify(trained, rebuild(trained, axes, kept), verification_inputs)
        except VerificationError as error:
            # Something other than a weight reads them.
            self._request.notify(f"channels that no filter reads stay: {error.where} differs without them")
            return axes, {}
        if self._request.measure and not self._pays(trained, rebuild(trained, axes, kept)):
            self._request.notify("channels that no filter reads stay: the network is not faster without them")
            return axes, {}
        return axes, kept

    def _pays(self, before: nn.Module, after: nn.Module) -> bool:
        """Whether the network is not slower without its unread channels: odd widths may be."""
        networks = {"before": before, "after": after}
        medians = from_first(
            lambda: time_networks(networks, self._request.example_inputs, self.profile, self._request.bench)
        )
        return medians["after"] <= medians["before"]

    def _plan_of_forms(self, alive: Tensor, choices: dict[str, Choice]) -> Plan:
        counts = self.groups.counts(alive)
        shaped = [
            PlanRow(name, before, after, 1, (name,), None, "positions", form=str(choices[name]))
            for name, (before, after) in counts.items()
        ]
        others = [
            PlanRow(name, weights, weights, 1, (name,), reason, "weights")
            for name, weights, reason in self.groups.left_dense
        ]
        return Plan((*shaped, *others))
