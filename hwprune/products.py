"""Products of matrices, from the shapes that a recording or a file says of their factors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hwprune.activations import of_one
from hwprune.operators import Operator

Sizes = Sequence[int]


def matrix_product(
    left: Sizes, right: Sizes, batch: int, *, left_computed: bool = True, right_computed: bool = True
) -> Operator:
    """A product of matrices, or of stacks of them.

    Rows are counted wherever they lie, in one long matrix or in a stack of them, and for one image: what is
    said of the first dimension of the network's inputs is divided out where it divides them.

    Args:
        left: Shape of the left factor, at least two dimensions.
        right: Shape of the right factor, at least two dimensions.
        batch: Images that the network was given.
        left_computed: Whether the left factor depends on the inputs; otherwise it holds weights.
        right_computed: Whether the right factor does.

    Returns:
        ``linear`` with one matrix of weights, ``batched_linear``, which no table knows, with a stack of
        them, ``matmul`` of two activations.

    >>> matrix_product((100, 8), (8, 16), batch=2, right_computed=False).height
    50
    """
    shared, columns = int(left[-1]), int(right[-1])
    if left_computed and right_computed:
        rows = math.prod(left[:-1])
        # Two plain matrices have no images apart that their rows could belong to.
        return Operator("matmul", shared, columns, height=rows if len(left) == 2 else of_one(rows, batch))
    if left_computed:
        weights, rows, out_channels = right, math.prod(left[:-1]), columns
    else:
        weights, rows, out_channels = left, math.prod(right[:-2]) * columns, int(left[-2])
    kind = "linear" if math.prod(weights[:-2]) == 1 else "batched_linear"
    return Operator(kind, shared, out_channels, height=of_one(rows, batch))
