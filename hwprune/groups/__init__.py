"""What may leave a network together, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from hwprune.groups.base import MaskedGroups
from hwprune.groups.block import BlockGroups
from hwprune.groups.shape import ShapeGroups
from hwprune.groups.weight import WeightGroups

#: From the network and the names of modules that stay dense to the groups.
MakeMasked = Callable[[nn.Module, Sequence[str]], MaskedGroups]

#: Granularities whose groups are zeros while the network is trained.
MASKED: dict[str, MakeMasked] = {
    "weight": WeightGroups,
    "block": BlockGroups,
    "shape": ShapeGroups,
}
#: Those whose members are single weights: others have no penalty of single weights.
SINGLE_WEIGHTS = frozenset({"weight", "block"})
