"""What every granularity offers: groups with norms that can be scaled, and what of them may stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Grouping(Protocol):
    """An assignment of members to groups, as the norms are now."""

    @property
    def count(self) -> int:
        """Number of groups that may leave."""
        ...

    def shares(self, member_norms: Tensor) -> Tensor:
        """Norm of every group on a scale common to all layers, shape ``(..., groups)``.

        Args:
            member_norms: Shape ``(members,)``; zero for dead members. Their memory may be used again.
        """
        ...

    def sums(self, member_values: Tensor) -> Tensor:
        """Sum over the members of every group, shape ``(..., groups)``, of values ``(members,)``."""
        ...

    def means(self, member_values: Tensor) -> Tensor:
        """Mean over the members of every group likewise, in memory of its own."""
        ...

    def to_members(self, group_values: Tensor, *, other: float) -> Tensor:
        """Spreads a value per group to members, shape ``(members,)``; ``other`` where there is none."""
        ...

    def state(self) -> list[Tensor]:
        """What :meth:`GroupSet.regroup` makes the same assignment from."""
        ...


class GroupSet(Protocol):
    """Disjoint groups of the weights of one network.

    The groups of a set are made of *members* (channels or single weights); what may leave together is
    decided by :meth:`bundle`, which the training repeats as the norms change.
    """

    @property
    def member_count(self) -> int:
        """Number of members over the whole network."""
        ...

    @property
    def group_count(self) -> int:
        """Number of groups of the dense network, those that must stay included."""
        ...

    def parameters(self) -> list[Tensor]:
        """The tensors that are scaled."""
        ...

    def rebind(self, model: nn.Module) -> None:
        """Takes the tensors of the network anew, by their names, and goes with them to their device.

        ``fully_shard`` puts others in their place, and a network may be moved before it is trained.

        Raises:
            InputError: If they are spread over processes otherwise than that does.
        """
        ...

    def member_norms(self) -> Tensor:
        """Euclidean norm of every member, shape ``(members,)``, in memory of its own."""
        ...

    def member_products(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """Inner product of every member at two points, shape ``(members,)``.

        Args:
            left: Tensors shaped like :meth:`parameters`, in that order.
            right: Likewise.
        """
        ...

    def scale_(self, factors: Tensor) -> None:
        """Multiplies every member by its factor or flag, shape ``(members,)``, in place."""
        ...

    def momenta_scale_(self, optimizer: torch.optim.Optimizer, factors: Tensor) -> None:
        """Multiplies the optimiser's state of every member likewise, in place."""
        ...

    def bundle(self, norms: Tensor, alive: Tensor) -> Grouping:
        """Groups the living members into what may leave together."""
        ...

    def regroup(self, state: Sequence[Tensor]) -> Grouping:
        """The grouping whose :meth:`Grouping.state` that was."""
        ...

    def groups_alive(self, alive: Tensor) -> int:
        """Number of living groups, those that must stay included, for living members ``(members,)``."""
        ...

    def members_alive(self, alive: Tensor) -> dict[str, int]:
        """Living members of every axis or layer, by its name, for living members ``(members,)``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """A budget as penalties take it.

    Attributes:
        budget: What may stay of the groups of one :class:`Grouping`, in the unit of the costs.
        cost: Shape ``(groups,)``, positive; ``None`` for ones.
        whole: What all groups of a row cost, where the budget is to come down from there while the penalty
            pulls; ``None`` where it stands from the first step.
    """

    budget: float
    cost: Tensor | None
    whole: float | None = None

    def at(self, slack: float) -> Terms:
        """The terms while a fraction ``slack`` of what exceeds the budget may still live.

        >>> Terms(2, None, whole=10).at(0.5).budget, Terms(2, None).at(0.5).budget
        (6.0, 2)
        """
        if self.whole is None:
            return self
        return replace(self, budget=self.budget + slack * max(self.whole - self.budget, 0.0))


class Allowance(Protocol):
    """What may stay: told to the penalty while it pulls, enforced when the support settles.

    Attributes:
        limit: The cost not to be exceeded; it may change during training.
        record: How the survivors were chosen, turn by turn; part of the training's state.
    """

    limit: float
    record: Sequence[Mapping[str, Any]]

    def terms(self, grouping: Grouping, alive: Tensor) -> Terms:
        """The budget of the groups that may leave, for living members ``(members,)``."""
        ...

    def survivors(self, norms: Tensor, alive: Tensor) -> Tensor:
        """The living members that stay in the end, a mask of shape ``(members,)``.

        Args:
            norms: Shape ``(members,)``; zero for dead members. Their memory may be used again.
            alive: Shape ``(members,)``, boolean.
        """
        ...


class MaskedGroups(GroupSet, Protocol):
    """Groups of single weights that become zeros in place: surgery has nothing to do."""

    @property
    def left_dense(self) -> Sequence[tuple[str, int, str]]:
        """Layers without groups: dotted name, number of weights, and why."""
        ...

    def allowance(self, count_of: Callable[[int], int]) -> Allowance:
        """What may stay, from a function of the number of groups to how many stay."""
        ...

    def counts(self, alive: Tensor) -> dict[str, tuple[int, int]]:
        """Dotted name of every layer with groups to its weights and those that live."""
        ...


@dataclass(frozen=True, slots=True)
class Bundles:
    """An assignment of members to groups, several to one.

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

    def sums(self, member_values: Tensor) -> Tensor:
        """Sum over the members of every group, shape ``(members,)`` to ``(groups,)``."""
        candidates = self.of_member >= 0
        sums = member_values.new_zeros(self.count)
        return sums.index_add_(0, self.of_member[candidates], member_values[candidates])

    def means(self, member_values: Tensor) -> Tensor:
        """Mean over the members of every group, shape ``(members,)`` to ``(groups,)``."""
        return self.sums(member_values) / self.sums(torch.ones_like(member_values))

    def norms(self, member_norms: Tensor) -> Tensor:
        """Norm of every group, shape ``(groups,)``, from the norms of the members."""
        return self.sums(member_norms.square()).sqrt()

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

    def state(self) -> list[Tensor]:
        """What changes from one bundling to the next."""
        return [self.of_member, self.axis_of]
