"""What may stay of a network's channels or branches: a budget on the widths of its axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from hwprune.groups.base import Bundles, Grouping, GroupSet, Terms
from hwprune.groups.costs import Budget, FloatArray, Widths, fit, price

#: From the allowance, the shares of the living groups per axis from strongest to weakest, and the living
#: widths, to the widths that stay.
ChooseWidths = Callable[["WidthAllowance", list[FloatArray], Widths], Widths]


class WidthGroups(GroupSet, Protocol):
    """Groups whose costs follow from how many members every axis has left."""

    @property
    def aligns(self) -> tuple[int, ...]:
        """Members that leave together, per axis."""
        ...

    @property
    def fewest(self) -> int:
        """Groups that every axis keeps."""
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
    """

    def __init__(self, groups: WidthGroups, budget: Budget, choose: ChooseWidths | None = None) -> None:
        self.groups, self.budget = groups, budget
        self.record: Sequence[Mapping[str, float]] = ()
        self.aligns: Widths = torch.tensor(groups.aligns).numpy()
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
        scores = self.groups.ranked_shares(norms, alive)
        return self.groups.strongest(norms, alive, self._choose(self, scores, self.groups.widths_of(alive)))

    def fitted(self, scores: list[FloatArray], living: Widths) -> Widths:
        """Widths that fit the budget, chosen greedily among the living groups."""
        return fit(self.budget, scores, living, self.aligns, self.groups.fewest)
