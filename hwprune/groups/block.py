"""N:M sparsity: of every M consecutive input weights of an output, N stay.

Every block is a budget of its own, so that penalties see one row of norms per block. Nothing becomes
narrower; runtimes that know the pattern (2:4 on NVIDIA's sparse tensor cores) skip the zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.errors import GraphError, InputError, TargetError
from hwprune.groups.base import Grouping, Terms
from hwprune.groups.flat import TYPICAL_SHARE, FlatWeights, Layer, find_layers

#: M where none is given: the pattern that hardware runs has blocks of four.
DEFAULT_SIZE = 4


class BlockGroups(FlatWeights):
    """The weights of a network in blocks, as a :class:`~hwprune.groups.base.GroupSet`.

    Blocks run along the inputs of a layer, at every position of the kernel of a convolution. Layers whose
    inputs are no multiple of M stay dense.

    Args:
        model: The network; its parameters are read and scaled in place.
        keep: Dotted names of modules that stay dense.
        size: M, the weights of a block.

    Attributes:
        size: M.
        left_dense: Layers without blocks: dotted name, number of weights, and why.

    Raises:
        GraphError: If M divides the inputs of no layer.
        InputError: If ``keep`` names no weight matrix, or M is below 2.
    """

    def __init__(self, model: nn.Module, keep: Sequence[str] = (), *, size: int = DEFAULT_SIZE) -> None:
        if size < 2:
            raise InputError("a block needs two weights", where="BlockGroups", expected="M >= 2", got=size)
        layers, kept = find_layers(model, keep)
        fitting = [layer for layer in layers if _inputs(layer) % size == 0]
        if not fitting:
            raise GraphError(
                f"nothing can be pruned: blocks of {size} divide the inputs of no layer",
                expected=f"a layer whose inputs are a multiple of {size}",
                got=", ".join(f"{layer.name}: {_inputs(layer)} inputs" for layer in layers),
            )
        super().__init__(fitting)
        self.size = size
        unfit = [layer for layer in layers if _inputs(layer) % size]
        self.left_dense = [
            *kept,
            *(
                (layer.name, layer.tensor.numel(), f"{_inputs(layer)} inputs are no multiple of {size}")
                for layer in unfit
            ),
        ]

    def allowance(self, count_of: Callable[[int], int]) -> BlockAllowance:
        """N of every block, the largest N within the number of weights that may stay.

        Raises:
            TargetError: If that is less than one weight per block.
        """
        wanted = count_of(self.member_count)
        kept = wanted * self.size // self.member_count
        if kept < 1:
            raise TargetError(
                f"the target leaves less than one weight in every block of {self.size}",
                expected=f"at least {self.member_count // self.size} weights of {self.member_count}",
                got=wanted,
                hint=f"keep at least 1/{self.size}, or take larger blocks",
            )
        return BlockAllowance(self, kept)

    def bundle(self, norms: Tensor, alive: Tensor) -> Blocks:
        """A row per block."""
        return self.regroup(())

    def regroup(self, state: Sequence[Tensor]) -> Blocks:
        """A row per block."""
        return Blocks(self.member_count, self.size)


def _inputs(layer: Layer) -> int:
    return layer.tensor.shape[1]


class Blocks:
    """A row per block, as a :class:`~hwprune.groups.base.Grouping`.

    Args:
        members: Number of weights.
        size: Weights per block.
    """

    def __init__(self, members: int, size: int) -> None:
        self._members, self._size = members, size

    @property
    def count(self) -> int:
        """Number of weights; dead ones have norm 0."""
        return self._members

    def shares(self, member_norms: Tensor) -> Tensor:
        """Every weight as a share of the living weights of its block, shape ``(blocks, size)``, in place.

        Scaled so that their root mean square is :data:`~hwprune.groups.flat.TYPICAL_SHARE`.
        """
        rows = self.sums(member_norms)
        whole = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        scale = TYPICAL_SHARE * math.sqrt(self._size)
        return rows.mul_(torch.where(whole > 0, scale / whole, 0.0))

    def sums(self, member_values: Tensor) -> Tensor:
        """The values themselves, shape ``(blocks, size)``."""
        return member_values.view(-1, self._size)

    def means(self, member_values: Tensor) -> Tensor:
        """The values, shape ``(blocks, size)``."""
        return self.sums(member_values).clone()

    def to_members(self, group_values: Tensor, *, other: float) -> Tensor:
        """The values themselves, shape ``(members,)``."""
        return group_values.reshape(-1)

    def state(self) -> list[Tensor]:
        """Nothing."""
        return []


class BlockAllowance:
    """N weights of every block, as an :class:`~hwprune.groups.base.Allowance`.

    Args:
        groups: The blocks.
        kept: N.
    """

    def __init__(self, groups: BlockGroups, kept: int) -> None:
        self._groups, self._kept = groups, kept
        self.record: Sequence[Mapping[str, Any]] = ()

    @property
    def limit(self) -> float:
        """Weights that stay in the whole network."""
        return self._kept * self._groups.member_count // self._groups.size

    @limit.setter
    def limit(self, limit: float) -> None:
        self._kept = round(limit * self._groups.size / self._groups.member_count)

    def terms(self, grouping: Grouping, alive: Tensor) -> Terms:
        """N for every row, at unit cost."""
        return Terms(self._kept, None, float(self._groups.size))

    def survivors(self, norms: Tensor, alive: Tensor) -> Tensor:
        """The N largest living weights of every block; of equal ones the first."""
        # Living weights that happen to be zero come before dead ones.
        norms.masked_fill_(~alive, -1.0)
        kept = torch.zeros_like(alive)
        for _layer, place in self._groups.slices():
            rows = norms[place].view(-1, self._groups.size)
            order = rows.sort(dim=-1, descending=True, stable=True).indices[:, : self._kept]
            kept[place].view(rows.shape).scatter_(1, order, True)
        return kept.logical_and_(alive)
