"""The latency of a network over the widths of its channels where whole branches may leave, too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from torch import nn

from hwprune.device.correction import Correction
from hwprune.device.predict import WidthPredictor
from hwprune.device.profile import DeviceProfile
from hwprune.errors import GraphError
from hwprune.graph.axes import ChannelAxis
from hwprune.graph.branches import Branch, without_branches
from hwprune.graph.record import ExampleInputs, Recording, Value, record
from hwprune.graph.trace import operators_of
from hwprune.groups.costs import FloatArray, Widths
from hwprune.operators import Operator
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.trial import half_of

#: An operator and how many equal ones ran before it.
_Known = tuple[Operator, int]
#: Input and output channels that an operator loses per channel of every axis.
_Losses = tuple[Widths, Widths]


@dataclass(frozen=True, slots=True, eq=False)
class NarrowerRecordings:
    """What a network computes when one of its axes is narrower: how its operators follow the widths.

    Attributes:
        dense: The network as it is.
        narrower: Per axis, the recording with that axis narrower.
        removed: Channels that are gone there, per axis.
    """

    dense: Recording
    narrower: tuple[Recording, ...]
    removed: tuple[int, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        dense: Recording,
        axes: Sequence[ChannelAxis],
        aligns: Sequence[int],
        example_inputs: ExampleInputs,
    ) -> NarrowerRecordings:
        """Narrows every axis once.

        Args:
            model: The network; not touched.
            dense: What it computes.
            axes: Its axes.
            aligns: Channels that leave together, per axis.
            example_inputs: What it is called with.

        Raises:
            GraphError: If the network runs other operators then, so that its branches are not found in it.
        """
        removed = tuple(half_of(axis.width, align) for axis, align in zip(axes, aligns, strict=True))
        narrower = []
        for axis, gone in zip(axes, removed, strict=True):
            kept = {axis.name: np.arange(axis.width) < axis.width - gone}
            recording = record(rebuild(model, axes, kept), example_inputs)
            if [call.op for call in recording.calls] != [call.op for call in dense.calls]:
                raise _not_together(f"others where {axis.name} is narrower")
            narrower.append(recording)
        return cls(dense, tuple(narrower), removed)

    def without(self, branches: Sequence[Branch]) -> NarrowerRecordings:
        """The same without some branches."""
        narrower = tuple(_without(recording, branches) for recording in self.narrower)
        return replace(self, dense=_without(self.dense, branches), narrower=narrower)

    def losses(self) -> _Losses:
        """What every operator loses per channel of every axis, both of shape ``(operators, axes)``."""
        dense = operators_of(self.dense)
        inputs = np.zeros((len(dense), len(self.removed)), dtype=np.int64)
        outputs = np.zeros_like(inputs)
        for axis, (recording, removed) in enumerate(zip(self.narrower, self.removed, strict=True)):
            own = operators_of(recording)
            if [each.kind for each in own] != [each.kind for each in dense]:
                raise _not_together("other operators are fused where it is narrower")
            pairs = list(zip(dense, own, strict=True))
            inputs[:, axis] = [(was.in_channels - now.in_channels) // removed for was, now in pairs]
            outputs[:, axis] = [(was.out_channels - now.out_channels) // removed for was, now in pairs]
        return inputs, outputs


def _not_together(got: str) -> GraphError:
    return GraphError(
        "branches cannot leave together with channels",
        expected="the same operators at every width",
        got=got,
        hint="prune one granularity after the other",
    )


def _without(recording: Recording, branches: Sequence[Branch]) -> Recording:
    """A recording without branches that were found in another one of the same operators."""
    own = [replace(branch, output=_output(recording, branch)) for branch in branches]
    return without_branches(recording, own)


def _output(recording: Recording, branch: Branch) -> Value:
    """What a branch hands on, in another recording: a value has the same number in both."""
    outputs = recording.calls[max(branch.calls)].outputs
    return next(value for value in outputs if value.index == branch.output.index)


@dataclass(frozen=True, eq=False)
class DepthPredictor:
    """The latency of a network at any widths, without the branches whose axes are empty.

    What is left when branches are gone is read from the recording, so that what is fused changes with them.

    Attributes:
        recordings: How operators follow the widths.
        branches: Those that may leave.
        axes_of: Per branch, indices of its axes.
        dense_widths: Shape ``(axes,)``.
        profile: The device.
        correction: From sums of rows to latencies; the profile's calibration and overhead by default.
    """

    recordings: NarrowerRecordings
    branches: tuple[Branch, ...]
    axes_of: tuple[tuple[int, ...], ...]
    dense_widths: Widths
    profile: DeviceProfile
    correction: Correction | None = None
    _losses: dict[_Known, _Losses] = field(default_factory=dict)
    _predictors: dict[tuple[bool, ...], WidthPredictor] = field(default_factory=dict)

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Fused operators of the dense network."""
        return operators_of(self.recordings.dense)

    def corrected(self, correction: Correction) -> Self:
        """The same prediction with another correction."""
        return replace(self, correction=correction, _predictors={})

    def latency_us(self, widths: Widths) -> FloatArray:
        """Predicted latency of networks.

        Args:
            widths: Shape ``(..., axes)``; a branch one of whose axes is zero is gone.

        Returns:
            Microseconds, shape ``(...)``.

        Raises:
            MissingRowError: If an operator at these widths is not covered by the table.
        """
        return self._per_pattern(widths, WidthPredictor.latency_us)

    def weights_mib(self, widths: Widths) -> FloatArray:
        """What all weights take in single precision: widths ``(..., axes)`` to MiB ``(...)``."""
        return self._per_pattern(widths, WidthPredictor.weights_mib)

    def _per_pattern(
        self, widths: Widths, asked: Callable[[WidthPredictor, Widths], FloatArray]
    ) -> FloatArray:
        """Asks one predictor per set of branches that are gone: widths ``(..., axes)`` to ``(...)``."""
        flat = np.asarray(widths, dtype=np.int64).reshape(-1, self.dense_widths.size)
        gone = np.stack([(flat[:, list(axes)] == 0).any(axis=1) for axes in self.axes_of], axis=1)
        total = np.empty(len(flat))
        patterns, of_network = np.unique(gone, axis=0, return_inverse=True)
        for index, pattern in enumerate(patterns):
            networks = of_network.reshape(-1) == index
            total[networks] = asked(self._without(tuple(pattern.tolist())), flat[networks])
        return total.reshape(np.shape(widths)[:-1])

    def _without(self, gone: tuple[bool, ...]) -> WidthPredictor:
        """Prices widths of the network without some branches."""
        if gone not in self._predictors:
            branches = [branch for branch, leaves in zip(self.branches, gone, strict=True) if leaves]
            operators = operators_of(_without(self.recordings.dense, branches))
            in_loss, out_loss = self._losses_of(_numbered(operators), branches)
            self._predictors[gone] = WidthPredictor(
                operators, in_loss, out_loss, self.dense_widths, self.profile, self.correction
            )
        return self._predictors[gone]

    def _losses_of(self, operators: Sequence[_Known], branches: Sequence[Branch]) -> _Losses:
        """The losses of operators that are left without some branches; most were seen with others gone."""
        # Equal operators without a name of their own are told apart by nothing but their places.
        told = all(operator.name and not before for operator, before in operators)
        if not told or not all(each in self._losses for each in operators):
            inputs, outputs = self.recordings.without(branches).losses()
            if not told:
                return inputs, outputs
            self._losses.update(zip(operators, zip(inputs, outputs, strict=True), strict=True))
        rows = [self._losses[each] for each in operators]
        none = np.zeros((0, self.dense_widths.size), dtype=np.int64)
        inputs = np.stack([each for each, _outputs in rows]) if rows else none
        outputs = np.stack([each for _inputs, each in rows]) if rows else none
        return inputs, outputs


def _numbered(operators: Sequence[Operator]) -> list[_Known]:
    """Every operator with the number of equal ones before it: a layer may run several times."""
    seen: Counter[Operator] = Counter()
    found = []
    for operator in operators:
        found.append((operator, seen[operator]))
        seen[operator] += 1
    return found


def axes_within(branch: Branch, axes: Sequence[ChannelAxis]) -> tuple[str, ...]:
    """Names of the axes that may shrink and lie in one branch with all that they cut.

    Args:
        branch: The branch.
        axes: All axes.
    """
    inside = tuple(f"{module}." for module in branch.modules)
    return tuple(
        axis.name
        for axis in axes
        if axis.pinned is None
        and axis.width > 1  # or no trial would show how operators follow it
        and all(part.tensor.startswith(inside) for part in axis.slices)
    )
