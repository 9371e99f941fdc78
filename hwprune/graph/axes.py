"""Channel axes: which slices of which tensors leave a network together.

This is the one vocabulary between whoever finds the coupling and whoever uses it (groups, surgery).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Role = Literal["producer", "consumer"]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TensorSlice:
    """Where the channels of one axis lie in one parameter or buffer.

    Attributes:
        tensor: Dotted name of the parameter or buffer, as in ``state_dict``.
        dim: The dimension that the axis runs along.
        channels: Shape ``(size of dim,)``: the channel of the axis that each position belongs to, or -1
            where it belongs to none (another part of a concatenation). A channel may own several
            positions (a map flattened into a linear layer).
        role: ``producer`` where all of the slice must be zero for the channel to vanish (filters, biases,
            scales and shifts of norms), ``consumer`` where it merely reads the channel.
    """

    tensor: str
    dim: int
    channels: IntArray
    role: Role


@dataclass(frozen=True, slots=True, eq=False)
class ChannelAxis:
    """One independent channel dimension of a network.

    Attributes:
        name: The first module that produces it, by its dotted name.
        width: Number of channels.
        slices: Everything that is cut when a channel leaves.
        pinned: Why the axis must keep its width, or ``None`` where it may shrink.
    """

    name: str
    width: int
    slices: tuple[TensorSlice, ...]
    pinned: str | None = None

    @property
    def producers(self) -> tuple[TensorSlice, ...]:
        """The slices that must be zero for a channel to vanish."""
        return tuple(part for part in self.slices if part.role == "producer")

    @property
    def consumers(self) -> tuple[TensorSlice, ...]:
        """The slices that read the axis."""
        return tuple(part for part in self.slices if part.role == "consumer")


def kept_positions(
    axes: Sequence[ChannelAxis], kept: Mapping[str, BoolArray]
) -> dict[tuple[str, int], IntArray]:
    """Positions of every cut tensor dimension that stay.

    Args:
        axes: The axes of the network.
        kept: Axis name to a mask of shape ``(width,)``; an axis not named keeps all of its channels.

    Returns:
        ``(tensor, dim)`` to ascending positions, for the dimensions that lose at least one position.
    """
    masks: dict[tuple[str, int], BoolArray] = {}
    for axis in axes:
        mask = kept.get(axis.name)
        if mask is None or mask.all():
            continue
        for part in axis.slices:
            stays = np.where(part.channels < 0, True, mask[np.maximum(part.channels, 0)])
            key = (part.tensor, part.dim)
            masks[key] = masks[key] & stays if key in masks else stays
    return {key: np.flatnonzero(mask) for key, mask in masks.items()}
