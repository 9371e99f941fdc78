"""Filter shapes: a position of the kernel, one of the inputs, leaves every filter of a convolution at once.

A convolution multiplies a matrix of filters with the patches of its input. A group is one column of that
matrix: the weights at position ``(input channel, row, column)`` in all of its filters. Without some columns,
every patch has so many values less to be read and multiplied: unlike zeros here and there, this leaves a
smaller dense product.

Source: Wen et al., Learning Structured Sparsity in Deep Neural Networks, NeurIPS 2016, arXiv 1608.03665.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hwprune.errors import GraphError
from hwprune.groups.flat import Layer, LayerGroups, LeftDense, find_layers
from hwprune.groups.shards import is_first_of, local, sum_over
from hwprune.groups.weight import Singles, WeightAllowance


class ShapeGroups(LayerGroups):
    """The kernel positions of a network as a :class:`~hwprune.groups.base.GroupSet`.

    Positions of a layer run as ``weight[0].flatten()`` does: input channel, row, column. Two-dimensional
    convolutions have them. Those in groups (depthwise ones too) stay dense: their filters read different
    inputs, so that no position belongs to all of them.

    Args:
        model: The network; its parameters are read and scaled in place.
        keep: Dotted names of modules that stay dense.

    Attributes:
        left_dense: Layers without positions: dotted name, number of weights, and why.

    Raises:
        GraphError: If no convolution has positions.
        InputError: If ``keep`` names no weight matrix.
    """

    def __init__(self, model: nn.Module, keep: Sequence[str] = ()) -> None:
        layers, kept = find_layers(model, keep)
        reasons = [_why_dense(model.get_submodule(layer.name)) for layer in layers]
        shaped = [layer for layer, reason in zip(layers, reasons, strict=True) if reason is None]
        if not shaped:
            raise GraphError(
                "nothing can be pruned: no layer has filter shapes",
                expected="a two-dimensional convolution with groups=1",
                got="; ".join(
                    f"{layer.name}: {reason}" for layer, reason in zip(layers, reasons, strict=True)
                ),
                hint="prune channels or single weights instead",
            )
        super().__init__(shaped)
        self.left_dense: list[LeftDense] = [
            *kept,
            *(
                (layer.name, layer.tensor.numel(), reason)
                for layer, reason in zip(layers, reasons, strict=True)
                if reason is not None
            ),
        ]

    def members_of(self, layer: Layer) -> int:
        """Positions of the filters of one layer."""
        return layer.tensor[0].numel()

    def allowance(self, count_of: Callable[[int], int]) -> WeightAllowance:
        """So many positions, anywhere in the network."""
        return WeightAllowance(self, count_of(self.member_count))

    def bundle(self, norms: Tensor, alive: Tensor) -> Singles:
        """Every position by itself."""
        return self.regroup(())

    def regroup(self, state: Sequence[Tensor]) -> Singles:
        """Every position by itself."""
        return Singles(self)

    def member_norms(self) -> Tensor:
        """Norm of every position over the filters of its layer, shape ``(members,)``."""
        return self.member_products(self.parameters(), self.parameters()).sqrt_()

    def member_products(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """Inner product of every position at two points, given as tensors like :meth:`parameters`."""
        products = torch.zeros(self.member_count, device=self._device)
        placed = zip(self.slices(), self._rows, left, right, strict=True)
        for (_layer, place), rows, one, other in placed:
            if rows.group is not None or is_first_of(self._sharers):
                products[place] = (local(one) * local(other)).sum(0).flatten()
        return sum_over(products, self._sharers)

    def scale_(self, factors: Tensor) -> None:
        """Multiplies every position by its factor or flag, shape ``(members,)``, in place."""
        for layer, place in self.slices():
            _scale_(local(layer.tensor), factors[place])

    def momenta_scale_(self, optimizer: torch.optim.Optimizer, factors: Tensor) -> None:
        """Multiplies the optimiser's state of every position likewise, in place."""
        for layer, place in self.slices():
            for value in optimizer.state.get(layer.tensor, {}).values():
                if isinstance(value, Tensor) and value.shape == layer.tensor.shape:
                    _scale_(local(value), factors[place])


def _why_dense(module: nn.Module) -> str | None:
    """Why a layer has no filter shapes; ``None`` where it has."""
    if not isinstance(module, nn.Conv2d):
        return f"a {type(module).__name__} has no filter shapes, two-dimensional convolutions do"
    if module.groups > 1:
        return f"its filters read {module.groups} different groups of inputs"
    return None


def _scale_(tensor: Tensor, factors: Tensor) -> None:
    tensor.mul_(factors.view(1, *tensor.shape[1:]))
