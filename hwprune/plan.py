"""What may be cut, what was, and why the rest stays: a summary a person can read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwprune.device.profile import DeviceProfile
from hwprune.errors import InputError
from hwprune.graph.axes import BoolArray, ChannelAxis, TensorSlice
from hwprune.groups.channel import ChannelGroups
from hwprune.operators import Operator

#: Widths and latencies in microseconds.
Staircase = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One axis.

    Attributes:
        name: The first module that produces it.
        width_before: Channels of the dense network.
        width_after: Channels kept.
        align: Channels that leave together.
        tied: Modules that are cut with it.
        reason: Why it stays whole, or ``None`` where it may shrink.
        unit: What its widths count.
        staircase: Widths it could have, ascending, with the predicted latency of the whole network in
            microseconds (an estimate), every other axis being as wide as it was left; empty where unknown.
        form: The form that its layer got and why, or why it got none; empty where that is no question.
        folded: Layers whose biases take up the constants of its dead channels, where those are not zero.
    """

    name: str
    width_before: int
    width_after: int
    align: int
    tied: tuple[str, ...]
    reason: str | None
    unit: str = "channels"
    staircase: Staircase = ()
    form: str = ""
    folded: tuple[str, ...] = ()

    @property
    def freed_us(self) -> float:
        """Predicted latency that the axis could free on its own, in microseconds; 0 where unknown."""
        return self.staircase[-1][1] - self.staircase[0][1] if self.staircase else 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """All axes of a network, in execution order.

    Attributes:
        rows: One for each.
        predicted_us: Predicted latency of the dense network in microseconds (an estimate), ``None`` where it
            is unknown or was not asked for.
    """

    rows: tuple[PlanRow, ...]
    predicted_us: float | None = None

    def as_records(self) -> list[dict[str, object]]:
        """The rows as the report carries them."""
        return [
            {
                "name": row.name,
                "width_before": row.width_before,
                "width_after": row.width_after,
                "align": row.align,
                "tied": list(row.tied),
                "kept_whole_because": row.reason,
                "unit": row.unit,
                "folded_into": list(row.folded),
                "staircase": [list(step) for step in row.staircase],
                "form": row.form,
            }
            for row in self.rows
        ]

    def __str__(self) -> str:
        """A table with one line per axis."""
        lines = []
        for row in self.rows:
            why = f"   ({row.reason or row.form})" if row.reason or row.form else ""
            if row.folded:
                why = f"   (dead channels are constants, folded into {', '.join(row.folded)})"
            lines.append(f"{row.name:40s} {row.width_before:5d} -> {row.width_after:5d}{why}")
        return "\n".join(lines)


def producing_modules(axis: ChannelAxis) -> tuple[str, ...]:
    """Dotted names of the modules whose parameters make up the channels, in order, without repeats."""
    return tuple(dict.fromkeys(part.tensor.rpartition(".")[0] for part in axis.producers))


def axis_aligns(
    axes: Sequence[ChannelAxis], operators: Sequence[Operator], profile: DeviceProfile
) -> dict[str, int]:
    """Channels that leave together, per axis: the largest alignment among its producing operators.

    A producer with no more channels than one step counts with a part of it
    (:attr:`~hwprune.device.steps.Steps.fine`). A channel that owns several filters of a layer (a whole group
    of a group norm, say) counts for as many.
    """
    by_layer: dict[str, int] = {}
    for operator in operators:
        by_layer[operator.name] = max(by_layer.get(operator.name, 1), profile.align_for(operator))
    return {
        axis.name: max(
            _channels_for(by_layer.get(part.tensor.rpartition(".")[0], 1), part, axis.width)
            for part in axis.producers
        )
        for axis in axes
    }


def _channels_for(align: int, part: TensorSlice, width: int) -> int:
    """How many channels make the positions of one slice a multiple of ``align``."""
    return align // math.gcd(align, int(np.count_nonzero(part.channels >= 0)) // width)


def pin(axes: Sequence[ChannelAxis], keep: Sequence[str]) -> tuple[ChannelAxis, ...]:
    """Pins the axes that the user wants whole.

    Args:
        axes: All axes.
        keep: Names of modules that produce them.

    Raises:
        InputError: If a name produces no axis.
    """
    wanted = set(keep)
    known = {module for axis in axes for module in producing_modules(axis)}
    unknown = wanted - known
    if unknown:
        raise InputError(
            "no such layer to keep",
            where="keep",
            expected=f"some of {sorted(known)}",
            got=sorted(unknown),
        )
    return tuple(
        replace(axis, pinned=axis.pinned or "kept on request")
        if wanted.intersection(producing_modules(axis))
        else axis
        for axis in axes
    )


def _unit(axis: ChannelAxis) -> str:
    """What the width of an axis counts: a channel may own several of its layer, one in every group, say."""
    filters = [int(np.count_nonzero(part.channels >= 0)) // axis.width for part in axis.producers]
    most = max(filters, default=1)
    return "channels" if most == 1 else f"sets of {most} channels"


def make_plan(
    axes: Sequence[ChannelAxis],
    groups: ChannelGroups,
    kept: Mapping[str, BoolArray],
    staircases: Mapping[str, Staircase],
    folded: Mapping[str, tuple[str, ...]],
) -> Plan:
    """The plan after the support has settled.

    Args:
        axes: All axes, pinned ones included.
        groups: The prunable channels.
        kept: Axis name to the mask of its kept channels; an axis not named is whole.
        staircases: Axis name to the latency over its width.
        folded: Axis name to the layers that take up the constants of its dead channels.
    """
    aligns = dict(zip((axis.name for axis in groups.axes), groups.aligns, strict=True))
    rows = []
    for axis in axes:
        reason = axis.pinned
        if reason is None and axis.name not in aligns:
            reason = f"{axis.width} channels are a single group"
        rows.append(
            PlanRow(
                axis.name,
                axis.width,
                int(kept[axis.name].sum()) if axis.name in kept else axis.width,
                aligns.get(axis.name, axis.width),
                tuple(dict.fromkeys(part.tensor.rpartition(".")[0] for part in axis.slices)),
                reason,
                _unit(axis),
                staircase=staircases.get(axis.name, ()),
                folded=folded.get(axis.name, ()),
            )
        )
    return Plan(tuple(rows))
