"""Channels that nothing reads any more: every weight that would read them is zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.graph.axes import BoolArray, ChannelAxis


def unread_channels(
    model: nn.Module, axes: Sequence[ChannelAxis], aligns: Mapping[str, int]
) -> dict[str, BoolArray]:
    """Axes with channels that can leave although their producers are not zero.

    Args:
        model: The network, its dead weights at zero.
        axes: Its channel axes.
        aligns: Axis name to the number of channels that leave together: of the unread ones so many stay that
            the width is a multiple of it.

    Returns:
        Axis name to the mask of the channels that stay, shape ``(width,)``; at least one does.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters())
    found = {}
    for axis in axes:
        readers = [part for part in axis.consumers if part.tensor in tensors]
        if axis.pinned is not None or not readers:
            continue
        read = np.zeros(axis.width, dtype=bool)
        for part in readers:
            living = _living_along(tensors[part.tensor], part.dim)
            read[part.channels[living & (part.channels >= 0)]] = True
        align = aligns[axis.name]
        stay = min(max(-(-int(read.sum()) // align), 1) * align, axis.width)
        if stay < axis.width:
            # Those that are read, then as many of the others as fill up the last step.
            first = np.argsort(~read, kind="stable")[:stay]
            found[axis.name] = np.isin(np.arange(axis.width), first)
    return found


def _living_along(tensor: Tensor, dim: int) -> BoolArray:
    """Which positions of one dimension hold a number that is not zero."""
    rows = tensor.detach().movedim(dim, 0).flatten(1)
    return np.asarray(torch.count_nonzero(rows, dim=1).gt(0).cpu().numpy(), dtype=bool)
