"""Residual branches: they leave, the network becomes shorter and faster, and the device says by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
from torch import Tensor, nn

from hwprune.closed_loop import DeviceLoop
from hwprune.device.correction import Correction, mib
from hwprune.device.predict import table_of
from hwprune.device.profile import DeviceProfile
from hwprune.errors import InputError
from hwprune.graph.axes import BoolArray
from hwprune.graph.branches import Branch, find_branches, without_branches
from hwprune.graph.record import ExampleInputs, Recording
from hwprune.graph.trace import operators_of
from hwprune.groups.branch import BranchGroups
from hwprune.groups.costs import FloatArray, Widths
from hwprune.operators import Operator
from hwprune.plan import Plan, PlanRow
from hwprune.processes import from_first
from hwprune.scope import Finished, Request
from hwprune.surgery.bypass import prove_branches, remove
from hwprune.surgery.verify import verify
from hwprune.width_scope import WidthScope


class _Left(NamedTuple):
    """A network without some branches: the sum of its rows, how many they are, and its weights in MiB."""

    sum_us: float
    operators: int
    mib: float


@dataclass(frozen=True, eq=False)
class BranchPredictor:
    """The latency of a network without any of its branches, without building it.

    The operators that are left are read from the recording, so that what is fused changes with them: a sum
    that goes leaves the convolution before it plain.

    Attributes:
        recording: The dense network.
        branches: Those that may leave.
        profile: The device.
        correction: From sums of rows to latencies; the profile's calibration and overhead by default.
    """

    recording: Recording
    branches: tuple[Branch, ...]
    profile: DeviceProfile
    correction: Correction | None = None
    _found: dict[tuple[bool, ...], _Left] = field(default_factory=dict)

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Fused operators of the dense network."""
        return operators_of(self.recording)

    def corrected(self, correction: Correction) -> Self:
        """The same prediction with another correction."""
        return replace(self, correction=correction)

    def latency_us(self, widths: Widths) -> FloatArray:
        """Predicted latency of networks.

        Args:
            widths: Shape ``(..., branches)``: zero for branches that are gone.

        Returns:
            Microseconds, shape ``(...)``.

        Raises:
            MissingRowError: If an operator is not covered by the table.
        """
        latency = self.profile.latency
        correction = self.correction or latency.correction
        left = self._left(widths)
        totals = [
            float(correction.latency_us(np.array(each.sum_us), np.array(each.mib)))
            + latency.per_operator_us * each.operators
            for each in left
        ]
        return np.array(totals, dtype=np.float64).reshape(np.shape(widths)[:-1])

    def weights_mib(self, widths: Widths) -> FloatArray:
        """What all weights take in single precision: widths ``(..., branches)`` to MiB ``(...)``."""
        return np.array([each.mib for each in self._left(widths)]).reshape(np.shape(widths)[:-1])

    def _left(self, widths: Widths) -> list[_Left]:
        """What is left of each network, of widths ``(..., branches)``."""
        kept = np.asarray(widths).reshape(-1, len(self.branches)) > 0
        return [self._without(tuple(row)) for row in kept.tolist()]

    def _without(self, kept: tuple[bool, ...]) -> _Left:
        if kept not in self._found:
            table = table_of(self.profile)
            gone = [branch for branch, stays in zip(self.branches, kept, strict=True) if not stays]
            operators = operators_of(without_branches(self.recording, gone))
            rows = [table.latency_us(each, self.profile.steps_for(each)) for each in operators]
            weights = sum(each.weights for each in operators)
            self._found[kept] = _Left(sum(rows), len(rows), float(mib(np.array(weights))))
        return self._found[kept]


class BranchScope(WidthScope[BranchGroups]):
    """The residual branches of one network as a :class:`~hwprune.scope.Scope`.

    Args:
        request: What is asked for; any target.

    Attributes:
        groups: The branches.
        allowance: The budget in microseconds or in branches.
        profile: The device, with a row for every operator.

    Raises:
        GraphError: If the forward pass fails or no branch may leave.
        TargetError: If the target is out of reach.
        InputError: If ``keep`` names no layer of a branch.
    """

    def __init__(self, request: Request) -> None:
        model, example_inputs = request.model, request.example_inputs
        recording, branches = find_branches(model, example_inputs)
        branches = pin_branches(branches, request.keep)
        self._bypasses = from_first(lambda: prove_branches(model, recording, branches, example_inputs))
        self.groups = BranchGroups(model, [bypass.branch for bypass in self._bypasses])
        operators = all_operators(recording, self.groups.branches)
        self.profile = request.localized(operators)

        def build(kept: Mapping[str, BoolArray]) -> nn.Module:
            return self._without(request.unsharded, kept)

        loop = DeviceLoop(
            build, example_inputs, self.groups.branches, self.profile, request.patience, request.bench
        )
        predictor = BranchPredictor(recording, self.groups.branches, self.profile)
        super().__init__(request, predictor, loop, operators)

    def preview(self) -> Plan:
        """The plan before training: what may leave, what cannot and why, and what it would free."""
        return self._plan(self.groups.widths)

    def finish(
        self, trained: nn.Module, alive: Tensor, verification_inputs: Sequence[ExampleInputs]
    ) -> Finished:
        """Rebuilds the network without the dead branches, and verifies it.

        Raises:
            VerificationError: If slim and masked differ.
        """
        widths = self.groups.widths_of(alive)
        kept = {
            branch.name: np.array([width > 0])
            for branch, width in zip(self.groups.branches, widths, strict=True)
        }
        slim = self._without(trained, kept)
        difference = verify(trained, slim, verification_inputs)
        return Finished(slim, self._plan(widths), (), {}, difference.absolute)

    def _without(self, model: nn.Module, kept: Mapping[str, BoolArray]) -> nn.Module:
        """A copy of the network with what is kept of each branch; one not named stays."""
        gone = {name for name, mask in kept.items() if not mask.any()}
        return remove(model, [bypass for bypass in self._bypasses if bypass.branch.name in gone])

    def _plan(self, widths: Widths) -> Plan:
        """Every branch, and the latency of the network with and without it, the others being as they are."""
        places = {branch.name: index for index, branch in enumerate(self.groups.branches)}
        rows = []
        for bypass in self._bypasses:
            branch, place = bypass.branch, places.get(bypass.branch.name)
            tied = tuple(dict.fromkeys(name.rpartition(".")[0] for name in branch.parameters))
            if place is None:
                rows.append(PlanRow(branch.name, 1, 1, 1, tied, branch.pinned, "branches"))
                continue
            networks = np.tile(widths, (2, 1))
            networks[:, place] = 0, 1
            latencies = self._predictor.latency_us(networks).tolist() if self._priced else []
            steps = tuple((count, round(us, 2)) for count, us in enumerate(latencies))
            rows.append(
                PlanRow(branch.name, 1, int(widths[place]), 1, tied, None, "branches", staircase=steps)
            )
        return Plan(tuple(rows))

    def _calibration_sample(self) -> list[Widths]:
        """Dense, and without every second branch."""
        every_second = np.arange(self.groups.widths.size) % 2
        return [self.groups.widths, every_second.astype(np.int64)]


def pin_branches(branches: Sequence[Branch], keep: Sequence[str]) -> tuple[Branch, ...]:
    """Pins the branches that the user wants whole.

    Args:
        branches: All branches.
        keep: Names of branches, or of layers of theirs.

    Raises:
        InputError: If a name belongs to no branch.
    """
    names = {branch.name: {branch.name, *branch.modules} for branch in branches}
    unknown = set(keep) - set().union(*names.values())
    if unknown:
        raise InputError(
            "no such branch to keep", where="keep", expected=f"some of {sorted(names)}", got=sorted(unknown)
        )
    return tuple(
        replace(branch, pinned=branch.pinned or "kept on request")
        if names[branch.name].intersection(keep)
        else branch
        for branch in branches
    )


def all_operators(recording: Recording, branches: Sequence[Branch]) -> tuple[Operator, ...]:
    """The fused operators of the network and of those without one branch, two that follow each other, or all.

    Args:
        recording: The network.
        branches: Those that may leave.
    """
    pairs = [list(pair) for pair in pairwise(branches)]
    gone = [[], *([branch] for branch in branches), *pairs, list(branches)]
    found = [operators_of(without_branches(recording, each)) for each in gone]
    unique = {replace(operator, name=""): operator for operators in found for operator in operators}
    return tuple(unique.values())
