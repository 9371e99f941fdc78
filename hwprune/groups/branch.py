"""Whole residual branches: depth.

A member is one branch with all of its weights. Zeroing a member makes the sum that it feeds hand on its other
operand; every branch may go, because a network without them still has its shortcuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.errors import GraphError
from hwprune.graph.branches import Branch
from hwprune.groups.base import Bundles
from hwprune.groups.costs import FloatArray, Together, Widths
from hwprune.groups.shards import common_group, is_first_of, local, rows_of, sum_over


@dataclass(frozen=True, slots=True)
class Singles(Bundles):
    """Every branch by itself, as a :class:`~hwprune.groups.base.Grouping`."""

    def shares(self, member_norms: Tensor) -> Tensor:
        """Norm of every branch as a share of that of all living branches together.

        Args:
            member_norms: Shape ``(members,)``; zero for dead members.
        """
        return self.norms(_shares(member_norms))


def _shares(norms: Tensor) -> Tensor:
    whole: Tensor = torch.linalg.vector_norm(norms).clamp_min(torch.finfo(norms.dtype).tiny)
    return norms / whole


class BranchGroups:
    """The residual branches of a network, as a :class:`~hwprune.groups.base.GroupSet`.

    The norm of a branch is the root mean square, over its tensors, of the norm of a row: the weights of one
    output channel or the scale of one. It does not grow with the width of the branch.

    Args:
        model: The network; its parameters are read and scaled in place.
        branches: Its branches; pinned ones are left out.

    Raises:
        GraphError: If none may leave.

    Attributes:
        branches: Those that may leave.
        aligns: One for every branch.
        fewest: Shape ``(branches,)``, zeros: none must stay.
        together: None, as a branch is gone by itself.
    """

    def __init__(self, model: nn.Module, branches: Sequence[Branch]) -> None:
        self.branches = tuple(branch for branch in branches if branch.pinned is None)
        if not self.branches:
            raise GraphError(
                "nothing can be pruned: no residual branch may leave",
                expected="at least one sum of a tensor with something computed from it",
                got="; ".join(f"{branch.name}: {branch.pinned}" for branch in branches) or "no residual sum",
            )
        self.aligns: tuple[int, ...] = (1,) * len(self.branches)
        self.fewest: Widths = np.zeros(len(self.branches), dtype=np.int64)
        self.together: Together = ()
        self.rebind(model)

    def rebind(self, model: nn.Module) -> None:
        """Takes the tensors of the network anew, after others were put in their place or it was moved.

        Raises:
            InputError: If they are spread over processes otherwise than ``fully_shard`` does.
        """
        names = [name for branch in self.branches for name in branch.parameters]
        self._tensors = [model.get_parameter(name) for name in names]
        self._device = self._tensors[0].device
        rows = [
            rows_of(tensor, name) if tensor.ndim else None
            for tensor, name in zip(self._tensors, names, strict=True)
        ]
        self._sharers = common_group(each for each in rows if each is not None)
        first = is_first_of(self._sharers)
        counted = [first or (each is not None and each.group is not None) for each in rows]
        members = [index for index, branch in enumerate(self.branches) for _name in branch.parameters]
        self._member_of_tensor = torch.tensor(members, device=self._device)
        self._weights = torch.tensor(
            [
                counts / (len(self.branches[member].parameters) * (tensor.shape[0] if tensor.ndim else 1))
                for member, tensor, counts in zip(members, self._tensors, counted, strict=True)
            ],
            device=self._device,
        )

    @property
    def member_count(self) -> int:
        """Number of branches."""
        return len(self.branches)

    @property
    def group_count(self) -> int:
        """Number of branches."""
        return len(self.branches)

    @property
    def widths(self) -> Widths:
        """One for every branch, shape ``(branches,)``."""
        return np.ones(len(self.branches), dtype=np.int64)

    def parameters(self) -> list[Tensor]:
        """All weights of the branches, branch after branch."""
        return list(self._tensors)

    def member_norms(self) -> Tensor:
        """Norm of every branch, shape ``(members,)``."""
        norms = torch.stack(torch._foreach_norm([local(tensor) for tensor in self._tensors]))
        return self._per_member(norms.float().square()).sqrt()

    def member_products(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """Inner product of every branch at two points, shape ``(members,)``, in the metric of the norms."""
        products = [(local(one) * local(other)).sum() for one, other in zip(left, right, strict=True)]
        return self._per_member(torch.stack(products).float())

    def _per_member(self, squares: Tensor) -> Tensor:
        """Sums values per tensor into the branches that own them, shape ``(members,)``."""
        sums = squares.new_zeros(self.member_count)
        return sum_over(sums.index_add_(0, self._member_of_tensor, squares * self._weights), self._sharers)

    def scale_(self, factors: Tensor) -> None:
        """Multiplies every branch by its factor or flag, shape ``(members,)``, in place."""
        torch._foreach_mul_([local(tensor) for tensor in self._tensors], self._per_tensor(factors))

    def momenta_scale_(self, optimizer: torch.optim.Optimizer, factors: Tensor) -> None:
        """Multiplies the optimiser's state of every branch likewise, in place."""
        for tensor, factor in zip(self._tensors, self._per_tensor(factors), strict=True):
            for value in optimizer.state.get(tensor, {}).values():
                if isinstance(value, Tensor) and value.shape == tensor.shape:
                    local(value).mul_(factor)

    def _per_tensor(self, factors: Tensor) -> list[Tensor]:
        return list(factors.to(torch.float32)[self._member_of_tensor].unbind())

    def bundle(self, norms: Tensor, alive: Tensor) -> Singles:
        """Every living branch by itself.

        Args:
            norms: Shape ``(members,)``.
            alive: Shape ``(members,)``, boolean.
        """
        of_member = torch.where(alive, alive.cumsum(0) - 1, -1)
        return self.regroup([of_member, torch.nonzero(alive).flatten()])

    def regroup(self, state: Sequence[Tensor]) -> Singles:
        """The groups whose state that was."""
        of_member, axis_of = (each.to(self._device) for each in state)
        members = torch.arange(self.member_count, device=self._device)
        return Singles(of_member, axis_of, members, torch.ones(self.member_count, device=self._device))

    def ranked_shares(self, norms: Tensor, alive: Tensor) -> list[FloatArray]:
        """Per branch, its share where it lives, nothing where it does not.

        Args:
            norms: Shape ``(members,)``; zero for dead members.
            alive: Shape ``(members,)``, boolean.
        """
        shares = _shares(norms).double().cpu().numpy()
        return [shares[index : index + int(lives)] for index, lives in enumerate(alive.tolist())]

    def strongest(self, norms: Tensor, alive: Tensor, widths: Widths) -> Tensor:
        """The living branches whose width is one, as a mask of shape ``(members,)``."""
        return alive & torch.from_numpy(widths > 0).to(alive.device)

    def widths_of(self, alive: Tensor) -> Widths:
        """One for every living branch, else zero, shape ``(branches,)``."""
        return np.asarray(alive.cpu().numpy(), dtype=np.int64)

    def groups_alive(self, alive: Tensor) -> int:
        """Number of living branches."""
        return int(torch.count_nonzero(alive))

    def members_alive(self, alive: Tensor) -> dict[str, int]:
        """One for every living branch, else zero, by its name."""
        return {branch.name: int(lives) for branch, lives in zip(self.branches, alive.tolist(), strict=True)}
