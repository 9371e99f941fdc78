"""What a compression works on, whatever the granularity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from hwprune.closed_loop import Turn
from hwprune.device.correction import Correction
from hwprune.device.predict import predict_operators
from hwprune.device.profile import DeviceProfile
from hwprune.graph.axes import BoolArray, ChannelAxis
from hwprune.graph.record import ExampleInputs
from hwprune.groups.base import Allowance, GroupSet
from hwprune.operators import Operator
from hwprune.plan import Plan
from hwprune.processes import from_first
from hwprune.runtime.bench import THIS_MACHINE, Bench
from hwprune.runtime.local import without_foreign_rows
from hwprune.runtime.operator_models import is_known
from hwprune.runtime.patience import Patience
from hwprune.surgery.forms import Form
from hwprune.targets import Groups, Keep, Target

#: Operators without a price that a note names.
_NAMED = 4


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What is asked for.

    Attributes:
        model: The network.
        unsharded: A network of the same shapes that stays whole where the network is sharded among
            processes later; else the network itself.
        example_inputs: What it is called with.
        profile: The device.
        target: What to reach.
        keep: Names of modules that must stay whole.
        measure: Whether to measure.
        notify: Called with one line for everything the user should know.
        patience: For timing again what was disturbed.
        bench: What is measured on.
    """

    model: nn.Module
    unsharded: nn.Module
    example_inputs: ExampleInputs
    profile: DeviceProfile
    target: Target
    keep: Sequence[str]
    measure: bool
    notify: Callable[[str], None]
    patience: Patience
    bench: Bench = THIS_MACHINE

    def localized(self, operators: Sequence[Operator]) -> DeviceProfile:
        """The profile made true for the device; measured by the first of several processes, for all of them.

        A number of groups needs no prices: what cannot be measured is left out then, and nothing is measured
        where that is not asked for.

        Args:
            operators: Fused operators of the dense network.
        """
        if self.counts and not self.measure:
            return without_foreign_rows(self.profile).for_network(operators, pruned=True)
        if self.counts:
            operators = [each for each in operators if is_known(each, self.profile.runtime.kind)]
        return from_first(lambda: self.bench.localize(self.profile, operators, notify=self.notify))

    @property
    def counts(self) -> bool:
        """Whether the target is a number of groups, which needs no predicted latency."""
        return isinstance(self.target, Keep | Groups)

    def dense_us(self, operators: Sequence[Operator], profile: DeviceProfile) -> float | None:
        """Predicted latency of the dense network in microseconds.

        Args:
            operators: Fused operators of the dense network.
            profile: The device, from :meth:`localized`.

        Returns:
            ``None``, and a note, where the target is a number of groups and an operator has no price.

        Raises:
            MissingRowError: If an operator has no price and the target is a latency.
        """
        if not self.prices(operators, profile):
            return None
        return predict_operators(operators, profile).total_us

    def prices(
        self, operators: Sequence[Operator], profile: DeviceProfile, *, narrower: bool = False
    ) -> bool:
        """Whether latencies are predicted; a note says so where they are not, and why.

        Args:
            operators: Fused operators of the network.
            profile: The device, from :meth:`localized`.
            narrower: Whether all smaller widths must have a price, too.

        Returns:
            Always true for a latency, which is not to be had without: the prediction tells what is missing.
        """
        table = profile.table
        covers = None if table is None else table.covers_narrower if narrower else table.covers
        missing = [op for op in operators if covers is None or not covers(op, profile.steps_for(op))]
        if not self.counts or not missing:
            return True
        named = list(dict.fromkeys(f"{op.kind} ({op.name})" if op.name else op.kind for op in missing))
        others = f" and {len(named) - _NAMED} others" if len(named) > _NAMED else ""
        self.notify(f"no latency is predicted: nothing prices {', '.join(named[:_NAMED])}{others}")
        return False


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """What is left of a network.

    Attributes:
        model: A network of its own, without what was pruned or with zeros in its place.
        plan: What went, what stayed and why.
        axes: The channel axes that could shrink.
        kept: Axis name to the mask of its kept channels.
        max_abs_difference: Against the trained network, over all outputs and inputs.
        forms: Convolutions that became smaller layers, after the cuts.
        biases: Dotted names of layers whose bias holds the constants of dead channels.
    """

    model: nn.Module
    plan: Plan
    axes: tuple[ChannelAxis, ...]
    kept: dict[str, BoolArray]
    max_abs_difference: float
    forms: tuple[Form, ...] = ()
    biases: tuple[str, ...] = ()


class Scope(Protocol):
    """The groups of one network, what of them may stay, and what becomes of the network then."""

    @property
    def groups(self) -> GroupSet:
        """What may leave."""
        ...

    @property
    def allowance(self) -> Allowance:
        """What may stay."""
        ...

    @property
    def profile(self) -> DeviceProfile:
        """The device, with a row for every operator that has a price."""
        ...

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Turns of the closed loop on the device so far."""
        ...

    @property
    def correction(self) -> Correction | None:
        """From sums of rows to predictions; ``None`` where nothing prices the network."""
        ...

    @property
    def dense_predicted_us(self) -> float | None:
        """Predicted latency of the dense network, in microseconds; ``None`` where it has no price."""
        ...

    def predicted_us(self, alive: Tensor) -> float | None:
        """Predicted latency of the finished network, in microseconds, for living members ``(members,)``."""
        ...

    def finish(
        self, trained: nn.Module, alive: Tensor, verification_inputs: Sequence[ExampleInputs]
    ) -> Finished:
        """Makes the pruned network and verifies it.

        Args:
            trained: The network with its trained weights, whole; not touched.
            alive: Shape ``(members,)``: which members are left.
            verification_inputs: Inputs to verify on.

        Raises:
            VerificationError: If it differs from the trained one.
        """
        ...
