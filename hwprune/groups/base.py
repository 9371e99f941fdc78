"""What every granularity offers: norms of its groups, and scaling them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class GroupSet(Protocol):
    """Disjoint groups of the weights of one network.

    The groups of a set are made of *members* (channels, blocks, weights); what may leave together is
    decided by :meth:`bundle`, which the training repeats as the norms change.
    """

    @property
    def member_count(self) -> int:
        """Number of members over the whole network."""
        ...

    def member_norms(self) -> Tensor:
        """Euclidean norm of every member, shape ``(members,)``."""
        ...

    def scale_(self, factors: Tensor) -> None:
        """Multiplies every member by its factor, shape ``(members,)``, in place."""
        ...

    def bundle(self, norms: Tensor, alive: Tensor) -> Bundles:
        """Groups the living members into what may leave together."""
        ...


@dataclass(frozen=True, slots=True)
class Bundles:
    """An assignment of members to groups.

    Attributes:
        of_member: Shape ``(members,)``: the group of each member, -1 for dead members and for those
            that must stay.
        axis_of: Shape ``(groups,)``: the axis that each group narrows, as an index.
        member_axis: Shape ``(members,)``: the axis of each member, as an index.
        axis_weight: Shape ``(axes,)``: the importance of each axis as a whole.
    """

    of_member: Tensor
    axis_of: Tensor
    member_axis: Tensor
    axis_weight: Tensor

    @property
    def count(self) -> int:
        """Number of groups that may leave."""
        return self.axis_of.numel()

    def norms(self, member_norms: Tensor) -> Tensor:
        """Norm of every group, shape ``(groups,)``, from the norms of the members."""
        candidates = self.of_member >= 0
        squares = member_norms.new_zeros(self.count)
        squares.index_add_(0, self.of_member[candidates], member_norms[candidates].square())
        return squares.sqrt()

    def shares(self, member_norms: Tensor) -> Tensor:
        """Norm of every group as a share of the norm of all living members of its axis, times its weight.

        A common scale for narrow and wide, early and late layers.

        Args:
            member_norms: Shape ``(members,)``; zero for dead members.

        Returns:
            Shape ``(groups,)``, each between 0 and the weight of its axis.
        """
        squares = member_norms.new_zeros(self.axis_weight.numel())
        squares.index_add_(0, self.member_axis, member_norms.square())
        whole = squares.sqrt().clamp_min(torch.finfo(member_norms.dtype).tiny)
        return self.norms(member_norms) * (self.axis_weight.to(whole) / whole)[self.axis_of]

    def to_members(self, group_values: Tensor, *, other: float) -> Tensor:
        """Spreads a value per group, shape ``(groups,)``, to members; ``other`` where there is none."""
        spread = group_values.new_full(self.of_member.shape, other)
        candidates = self.of_member >= 0
        spread[candidates] = group_values[self.of_member[candidates]]
        return spread
