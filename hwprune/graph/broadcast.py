"""Labels of tensors that are combined position by position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwprune.graph.flow import Flow, Labelled
from hwprune.graph.labels import Dims, Labels


def combine(flow: Flow, tensors: Sequence[Labelled], what: str, *, additive: bool) -> Dims:
    """Labels of an element-wise result, by the rules of broadcasting.

    Args:
        flow: The labels so far.
        tensors: The operands; at least one.
        what: What is done to them, for the reason where a channel meets something fixed.
        additive: Whether the result may be non-zero where only one operand is. A parameter among
            activations must then be zero for the channel to vanish; one that multiplies need not.

    Returns:
        The labels of the result.
    """
    shape = np.broadcast_shapes(*(tensor.shape for tensor in tensors))
    if additive:
        _note_addends(flow, tensors)
    return tuple(_combine_dim(flow, tensors, len(shape) - dim, size, what) for dim, size in enumerate(shape))


def _combine_dim(flow: Flow, tensors: Sequence[Labelled], from_end: int, size: int, what: str) -> Labels:
    """Labels of one dimension, counted from the last as 1."""
    sides: list[Labels] = []
    # The labels of the first are the common ones, and a buffer is nothing to zero for a channel to vanish.
    for tensor in sorted(tensors, key=lambda tensor: tensor.source == "buffer"):
        if tensor.rank < from_end:
            continue
        labels = tensor.dims[-from_end]
        if tensor.shape[-from_end] == size:
            sides.append(labels)
        else:
            flow.pin(labels, "its only channel is broadcast")
    common = sides[0]
    for side in sides[1:]:
        common = flow.meet(common, side, f"{what} with something of fixed width")
    return common


def _note_addends(flow: Flow, tensors: Sequence[Labelled]) -> None:
    """Marks parameters that are added to activations; keeps parameters that are added to each other."""
    weights = [tensor for tensor in tensors if tensor.is_weight]
    activations = [tensor for tensor in tensors if not tensor.is_weight]
    if activations:
        channels = {
            from_end
            for tensor in activations
            for from_end, labels in enumerate(reversed(tensor.dims))
            if labels is not None
        }
        for tensor in weights:
            added = enumerate(reversed(tensor.dims))
            flow.produce(tensor, *(labels for from_end, labels in added if from_end in channels))
    elif len(weights) > 1 and not _same_atoms(weights):
        # Which of them must be zero would have to be known wherever the sum is used.
        for tensor in weights:
            flow.pin_all(tensor.dims, "parameters are added to each other")


def _same_atoms(tensors: Sequence[Labelled]) -> bool:
    """Whether all labels of the tensors come from the same parameter: ``w - mean(w)``."""
    seen: dict[int, Labels] = {}
    for tensor in tensors:
        for from_end, labels in enumerate(reversed(tensor.dims)):
            if labels is not None and not np.array_equal(seen.setdefault(from_end, labels), labels):  # type: ignore[arg-type]
                return False
    return True
