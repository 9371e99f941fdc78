"""An order in which the channels of axes should stay, and the ranking that follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hwprune.groups.channel import ChannelGroups
from hwprune.groups.costs import FloatArray
from hwprune.groups.widths import Ranking


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """The channels of one axis, and what is lost without them.

    Attributes:
        channels: The living ones, those that are missed most first.
        lost: Shape ``(groups + 1,)``: what is lost when so many groups are left, as a part of what there is;
            0 at the end.
    """

    channels: Sequence[int]
    lost: FloatArray


def ranking(groups: ChannelGroups, norms: Tensor, alive: Tensor, orders: Mapping[str, Order]) -> Ranking:
    """What is lost with whom by given orders; axes without one go by their norms.

    Args:
        groups: The channels.
        norms: Shape ``(members,)``.
        alive: Shape ``(members,)``, boolean.
        orders: Axis name to order of its living channels.
    """
    strengths = norms.clone()
    losses = []
    shares = groups.ranked_shares(norms, alive)
    for axis, start, align, own in zip(groups.axes, groups.starts[:-1], groups.aligns, shares, strict=True):
        order = orders.get(axis.name)
        if order is None:
            kept = np.concatenate([[0.0], np.cumsum(own**2)])
            losses.append(1 - kept / max(kept[-1], np.finfo(np.float64).tiny))
            continue
        assert len(order.lost) == math.ceil(len(order.channels) / align) + 1  # one for every number of groups
        places = torch.arange(len(order.channels), 0, -1, dtype=norms.dtype, device=norms.device)
        strengths[int(start) + torch.tensor(order.channels, device=norms.device)] = places
        losses.append(order.lost)
    return Ranking(strengths, losses)
