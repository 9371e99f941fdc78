"""SR-STE: weights of which every block of M keeps its N largest in the forward pass, from the first step on.

Source: Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, ICLR 2021,
arXiv 2102.04010, equations 8 and 9.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hwprune.groups.block import BlockGroups
from hwprune.groups.flat import inputs_last
from hwprune.penalties import nm_mask, sr_ste_gradient


class _StraightThrough(torch.autograd.Function):
    """Masked weights forward; backward what the dense weights take."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        weight, mask = ctx.saved_tensors
        return sr_ste_gradient(gradients[0], weight, mask), None


class NLargest(nn.Module):
    """The N largest of every block of M along the inputs, as a parametrisation of a weight matrix.

    Args:
        n: Weights that every block keeps.
        m: Weights per block.
    """

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.n, self.m = n, m

    def forward(self, weight: Tensor) -> Tensor:
        """The masked weights, shape ``(outputs, inputs, ...)`` as they come."""
        mask = nm_mask(inputs_last(weight), self.n, self.m).movedim(-1, 1)
        masked: Tensor = _StraightThrough.apply(weight, mask)  # type: ignore[no-untyped-call]
        return masked


@contextmanager
def masked_forward(model: nn.Module, groups: BlockGroups, n: int) -> Iterator[None]:
    """Trains the layers in blocks by SR-STE; in the end the masked weights are all that is left of them.

    Args:
        model: Changed in place.
        groups: Its blocks.
        n: Weights that every block keeps.
    """
    names = [layer.parameter.rpartition(".") for layer in groups.layers]
    modules = [(model.get_submodule(path), name) for path, _dot, name in names]
    for module, name in modules:
        parametrize.register_parametrization(module, name, NLargest(n, groups.size))
    try:
        yield
    finally:
        for module, name in modules:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
