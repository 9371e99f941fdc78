"""What a compression works on, whatever the granularity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from hwprune.closed_loop import Turn
from hwprune.device.profile import DeviceProfile
from hwprune.graph.axes import BoolArray, ChannelAxis
from hwprune.graph.record import ExampleInputs
from hwprune.groups.base import Allowance, GroupSet
from hwprune.operators import Operator
from hwprune.plan import Plan
from hwprune.processes import from_first
from hwprune.runtime.bench import THIS_MACHINE, Bench
from hwprune.surgery.forms import Form
from hwprune.targets import Target


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
    bench: Bench = THIS_MACHINE

    def localized(self, operators: Sequence[Operator]) -> DeviceProfile:
        """The profile made true for the device; measured by the first of several processes, for all of them.

        Args:
            operators: Fused operators of the dense network.
        """
        return from_first(lambda: self.bench.localize(self.profile, operators, notify=self.notify))


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
        """The device, with a row for every operator."""
        ...

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Turns of the closed loop on the device so far."""
        ...

    @property
    def dense_predicted_us(self) -> float:
        """Predicted latency of the dense network, in microseconds."""
        ...

    def predicted_us(self, alive: Tensor) -> float:
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
