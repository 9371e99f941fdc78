"""What may stay of a network's channels or branches: a budget on the widths of its axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hwprune.groups.base import Bundles, Grouping, GroupSet, Terms
from hwprune.groups.costs import Budget, FloatArray, Widths, price
from hwprune.groups.least_loss import fit

#: From the allowance, what is lost per axis with every number of groups left, and the living widths, to the
#: widths that stay.
ChooseWidths = Callable[["WidthAllowance", Sequence[FloatArray], Widths], Widths]


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """How much is lost with which members.

    Attributes:
        strengths: Shape ``(members,)``: of the members of an axis the strongest ones stay.
        losses: Per axis, shape ``(living groups + 1,)``: what is lost when so many of its groups are left.
    """

    strengths: Tensor
    losses: Sequence[FloatArray]


def losses_of_shares(shares: FloatArray) -> FloatArray:
    """What is lost of one axis with every number of groups left, by their norms.

    What a layer passes on is about the product of what its layers keep, so the loss of a group is its part of
    what its axis *still* has, in squares: the gradient of the sum of their logarithms. The last groups of a
    narrow axis are dear, however little each had of the dense one.

    Args:
        shares: Of the living groups, from strongest to weakest.

    Returns:
        One more than there are groups; 0 at the end.

    >>> losses_of_shares(np.array([2.0, 1.0, 1.0])).tolist()
    [8.2, 2.2, 1.0, 0.0]
    """
    squares = shares**2
    kept = np.maximum(np.cumsum(squares), np.finfo(np.float64).tiny)
    steps = squares * (squares.sum() / kept)
    return np.concatenate([np.cumsum(steps[::-1])[::-1], [0.0]])


class WidthGroups(GroupSet, Protocol):
    """Groups whose costs follow from how many members every axis has left."""

    @property
    def aligns(self) -> tuple[int, ...]:
        """Members that leave together, per axis."""
        ...

    @property
    def fewest(self) -> Widths:
        """Groups that every axis keeps, shape ``(axes,)``: 1, or 0 where it may be empty."""
        ...

    def widths_of(self, alive: Tensor) -> Widths:
        """Living members of every axis, shape ``(axes,)``."""
        ...

    def ranked_shares(self, norms: Tensor, alive: Tensor) -> list[FloatArray]:
        """Per axis, the shares of its living groups from strongest to weakest."""
        ...

    def strongest(self, norms: Tensor, alive: Tensor, widths: Widths) -> Tensor:
        """The ``widths`` strongest living members of every axis, as a mask of shape ``(members,)``."""
        ...


class WidthAllowance:
    """A budget on widths as an :class:`~hwprune.groups.base.Allowance`.

    Args:
        groups: The groups.
        budget: What the network may cost.
        choose: Called when the support settles; may replace :attr:`budget`. Defaults to
            :func:`~hwprune.groups.costs.fit` on the budget.

    Attributes:
        budget: What the network may cost.
        aligns: Shape ``(axes,)``: members that leave together.
        rank: From norms and flags, both of shape ``(members,)``, to what is lost with whom; by norm where
            nothing better was put in its place.
    """

    def __init__(self, groups: WidthGroups, budget: Budget, choose: ChooseWidths | None = None) -> None:
        self.groups, self.budget = groups, budget
        self.record: Sequence[Mapping[str, Any]] = ()
        self.aligns: Widths = torch.tensor(groups.aligns).numpy()
        self.rank: Callable[[Tensor, Tensor], Ranking] = self.by_norm
        self._choose = choose or WidthAllowance.fitted

    @property
    def limit(self) -> float:
        """The budget's limit."""
        return self.budget.limit

    @limit.setter
    def limit(self, limit: float) -> None:
        self.budget = self.budget.with_limit(limit)

    def terms(self, grouping: Grouping, alive: Tensor) -> Terms:
        """The budget linearised at the living widths; the mean cost is 1."""
        assert isinstance(grouping, Bundles)  # what these groups are bundled into
        prices = price(self.budget, self.groups.widths_of(alive), self.aligns, self.groups.fewest)
        per_axis = torch.from_numpy(prices.per_axis).to(grouping.axis_weight)
        # A common factor of costs and budget changes nothing; a mean cost of 1 keeps them well scaled.
        cost = per_axis[grouping.axis_of]
        unit = float(cost.mean()) if grouping.count else 1.0
        room = max(float(cost.sum()) - prices.excess, 0.0)
        return Terms(room / unit, cost / unit)

    def survivors(self, norms: Tensor, alive: Tensor) -> Tensor:
        """The strongest living members of every axis, as many as were chosen."""
        ranking = self.rank(norms, alive)
        widths = self._choose(self, ranking.losses, self.groups.widths_of(alive))
        return self.groups.strongest(ranking.strengths, alive, widths)

    def fitted(self, losses: Sequence[FloatArray], living: Widths) -> Widths:
        """Widths that fit the budget, with the least loss among the living groups."""
        return fit(self.budget, losses, living, self.aligns, self.groups.fewest)

    def by_norm(self, norms: Tensor, alive: Tensor) -> Ranking:
        """Groups with large norms stay.

        Args:
            norms: Shape ``(members,)``; zero for dead members.
            alive: Shape ``(members,)``, boolean.
        """
        return Ranking(norms, [losses_of_shares(each) for each in self.groups.ranked_shares(norms, alive)])
