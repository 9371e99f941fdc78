"""The latency of a network over the widths of its channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from hwprune.device.predict import FloatArray, IntArray, WidthPredictor
from hwprune.device.profile import DeviceProfile
from hwprune.errors import InputError
from hwprune.graph.coupling import find_axes
from hwprune.graph.record import ExampleInputs
from hwprune.groups.channel import ChannelGroups
from hwprune.operators import Operator
from hwprune.plan import axis_aligns
from hwprune.surgery.prove import ProvenAxes, prove


@dataclass(frozen=True, slots=True, eq=False)
class ChannelWidths:
    """What any narrower version of a network takes, without building it; an estimate from measured rows.

    Attributes:
        names: Of the axes that may shrink: the first module that produces each.
        dense: Shape ``(axes,)``: their widths in the network as it is. Channels that can only leave together
            with others of their layer, one of every group of a convolution say, count as one.
        aligns: Shape ``(axes,)``: channels that leave together on the device.
        predictor: Prices widths.
    """

    names: tuple[str, ...]
    dense: IntArray
    aligns: IntArray
    predictor: WidthPredictor

    def latency_us(self, widths: IntArray | Sequence[Sequence[int]]) -> FloatArray:
        """Predicted latency of networks, in microseconds.

        Args:
            widths: Shape ``(networks, axes)``, in the order of ``names``; from 1 to the dense width.

        Returns:
            Shape ``(networks,)``.

        Raises:
            InputError: If there are no such widths.
            MissingRowError: If the table does not cover an operator at these widths.
        """
        try:
            given = np.asarray(widths)
        except ValueError:  # networks of unequal numbers of widths
            given = np.asarray(widths, dtype=object)
        if given.ndim != 2 or given.shape[1] != len(self.names) or given.dtype.kind not in "iu":
            raise InputError(
                "these are no widths of the network",
                where="widths",
                expected=f"whole numbers of shape (networks, {len(self.names)})",
                got=f"{given.dtype.name} of shape {given.shape}",
            )
        wrong = (given < 1) | (given > self.dense)
        if wrong.any():
            network, axis = np.argwhere(wrong)[0]
            raise InputError(
                "the network has no such width",
                where=f"widths, network {network}, axis {self.names[axis]}",
                expected=f"1 to {self.dense[axis]}",
                got=int(given[network, axis]),
            )
        return self.predictor.latency_us(given)


def channel_widths(
    model: nn.Module, operators: Sequence[Operator], profile: DeviceProfile, example_inputs: ExampleInputs
) -> ChannelWidths:
    """The widths that pruning would choose among.

    Args:
        model: Any network; not touched.
        operators: Its fused operators.
        profile: The device, with a row for each of them.
        example_inputs: What it is called with.

    Raises:
        GraphError: If the forward pass fails or nothing can be pruned.
    """
    axes = find_axes(model, example_inputs)
    aligns = axis_aligns(axes, operators, profile)
    proven = prove(model, axes, example_inputs, aligns, fold=True)
    groups = ChannelGroups(model, proven.axes, aligns)
    return ChannelWidths(
        tuple(axis.name for axis in groups.axes),
        groups.widths,
        np.array(groups.aligns, dtype=np.int64),
        predictor_of(operators, proven, groups, profile),
    )


def predictor_of(
    operators: Sequence[Operator], proven: ProvenAxes, groups: ChannelGroups, profile: DeviceProfile
) -> WidthPredictor:
    """Prices widths of the axes that may shrink.

    Args:
        operators: Fused operators of the dense network.
        proven: How they follow the widths of all axes.
        groups: The axes that may shrink.
        profile: The device.
    """
    columns = [proven.axes.index(axis) for axis in groups.axes]
    in_loss, out_loss = proven.in_loss[:, columns], proven.out_loss[:, columns]
    return WidthPredictor(operators, in_loss, out_loss, groups.widths, profile)
