"""Operators on activations alone, from the shapes that a recording or a file says of them.

All count what they do for one image: what is said of the first dimension of the network's inputs is divided
out where it divides, wherever the images lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hwprune.operators import Operator

Sizes = Sequence[int]


def shaped(kind: str, shape: Sizes, batch: int) -> Operator:
    """An operator that needs nothing but the shape of an activation.

    Args:
        kind: Its kind.
        shape: (N, C, H, W), or any other with the channels last.
        batch: Images that the network was given.

    >>> [(each.out_channels, each.height, each.width) for each in (
    ...     shaped("add", (2, 16, 7, 9), 2), shaped("add", (2, 10), 2), shaped("add", (6, 50, 32), 2))]
    [(16, 7, 9), (10, 1, 1), (32, 150, 1)]
    """
    if len(shape) == 4:
        channels, rows, columns = shape[1], shape[0] * shape[2], shape[3]
        if rows % batch:  # the images stand second
            channels = of_one(channels, batch)
    else:
        channels, rows, columns = (shape[-1] if shape else 1), math.prod(shape[:-1]), 1
    return Operator(kind, channels, channels, of_one(rows, batch), columns)


def softmax(shape: Sizes, axis: int, batch: int) -> Operator:
    """A softmax along the last dimension (the columns), or ``softmax_across`` along another (the rows).

    What stands before the last two dimensions, the heads of an attention, counts as channels: rows of all
    heads then price fewer of them.

    Args:
        shape: Of the activation.
        axis: Along which the results sum up to one; negative ones count from the last.
        batch: Images that the network was given.

    >>> softmax((2 * 3, 50, 40), -1, batch=2) == softmax((2, 3, 50, 40), 3, batch=2)
    True
    >>> logits = softmax((2, 10), 1, batch=2)
    >>> logits.in_channels, logits.height, logits.width
    (1, 1, 10)
    """
    shape = tuple(shape) or (1,)
    axis %= len(shape)
    before, after = shape[:axis], shape[axis + 1 :]
    if after:
        channels = of_one(math.prod(before), batch)
        return Operator("softmax_across", channels, channels, shape[axis], math.prod(after))
    rows = before[-1] if len(before) > 1 else 1
    channels = of_one(math.prod(before) // rows, batch)
    return Operator("softmax", channels, channels, rows, shape[axis])


def mean(shape: Sizes, axes: Sequence[int], batch: int) -> Operator:
    """A mean over the whole map or signal, over the rows of a sequence, or ``mean``, which no table knows.

    Args:
        shape: Of what is averaged.
        axes: Over which; negative ones count from the last.
        batch: Images that the network was given.

    >>> [mean(shape, axes, 2).kind for shape, axes in (
    ...     ((2, 8, 7, 7), (-1, -2)), ((2, 50, 8), (1,)), ((2, 8, 7, 7), (1,)))]
    ['global_average_pool', 'sequence_mean', 'mean']
    """
    over = sorted(axis % len(shape) for axis in axes)
    if len(shape) == 3 and over == [2]:
        shape, over = (*shape[:2], 1, shape[2]), [2, 3]
    kinds = {(4, (2, 3)): "global_average_pool", (3, (1,)): "sequence_mean"}
    return shaped(kinds.get((len(shape), tuple(over)), "mean"), shape, batch)


def layer_norm(shape: Sizes, dimensions: int, batch: int) -> Operator:
    """A norm along the last dimension, wherever the channels of a map are, or one that no table knows.

    Args:
        shape: Of the activation.
        dimensions: How many of the last ones it runs along.
        batch: Images that the network was given.

    >>> layer_norm((2, 4, 5, 6), 1, 2).height, layer_norm((2, 4, 5, 6), 3, 2).kind
    (20, 'layer_norm_3d')
    """
    kind = "layer_norm" if dimensions == 1 else f"layer_norm_{dimensions}d"
    channels = shape[-1]
    return Operator(kind, channels, channels, height=of_one(math.prod(shape[:-1]), batch))


def of_one(count: int, batch: int) -> int:
    """What one image has of a count; all of it where the images do not share it evenly.

    >>> of_one(12, 4), of_one(3, 4)
    (3, 3)
    """
    return count if count % batch else count // batch
