"""One penalty at work on the groups of a network: how much of each group it leaves at a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hwprune.errors import ArtifactError
from hwprune.groups.base import Grouping, GroupSet, Terms
from hwprune.penalties import Penalty, ProjectingPenalty, RootedPenalty, StatefulPenalty, strongest

#: Costs in float32 that add up to the budget but for rounding still fit it.
ROUNDING = 1e-6


class Pull:
    """A penalty with what it needs to remember from step to step.

    Coefficients of a stateful penalty are kept per *member*, because channels are bundled anew during
    training and single weights are not. A bundle takes the mean of its members' and hands its change back to
    all of them, so that sums over the network do not depend on the bundling. Members that must stay are under
    no penalty and keep theirs. Here they are members of the proximal step, not parameters of the network: no
    optimiser, weight decay or gradient clipping of the user's touches them, and the network's
    ``state_dict`` stays free of them.

    No penalty pulls where everything that lives fits the budget, or takes so much at once that less than the
    budget is left: those that know no budget stop there, the others do so by themselves.

    Args:
        groups: The groups.
        penalty: Whose proximal operator is applied.
    """

    def __init__(self, groups: GroupSet, penalty: Penalty) -> None:
        self._groups, self._penalty = groups, penalty
        self._terms = Terms(float("inf"), None)
        self._state: dict[str, Tensor] = {}
        self._before: list[Tensor] | None = None
        self._root: Tensor | None = None

    def price(self, terms: Terms) -> None:
        """Takes the budget of a new grouping."""
        self._terms = terms
        self._penalty = self._penalty.replace_budget(terms.budget, terms.cost)

    def remember(self) -> None:
        """Notes the point before an optimiser's step, where the penalty compares it with the one after."""
        if isinstance(self._penalty, ProjectingPenalty):
            self._before = [tensor.detach().clone() for tensor in self._groups.parameters()]

    def factors(self, grouping: Grouping, member_norms: Callable[[], Tensor], strength: float) -> Tensor:
        """What every group is multiplied by, shape ``(..., groups)``.

        Args:
            grouping: The groups at present.
            member_norms: Gives them, shape ``(members,)``, zero for dead members, in memory that is used
                again: where there are millions, two vectors of them at once would be felt.
            strength: The schedule's, positive.
        """
        shares = grouping.shares(member_norms())
        fits = _cost(shares, self._terms) <= self._terms.budget * (1 + ROUNDING)
        strength = strength * self._penalty.strength_scale
        if isinstance(self._penalty, StatefulPenalty):
            factors = self._advance(self._penalty, grouping, shares, strength)
        elif bool(fits.all()) and math.isfinite(float(shares.amax())):  # other norms are refused below
            self._before = None
            return shares.fill_(1.0)
        elif isinstance(self._penalty, RootedPenalty):
            factors = self._solve(self._penalty, shares, strength)
        else:
            factors = self._penalty.prox_factors(shares, strength)
        if isinstance(self._penalty, ProjectingPenalty) and self._before is not None:
            factors = self._project(grouping, factors)
        return spared(factors, fits, self._terms, lambda: grouping.shares(member_norms()))

    def _solve(self, penalty: RootedPenalty, shares: Tensor, strength: float) -> Tensor:
        """The factors, in the memory of the shares; starts from the root of the step before."""
        shape = (*shares.shape[:-1], 1)
        start = self._root if self._root is not None and self._root.shape == shape else None
        solution = penalty.solve(shares, strength, start, out=shares)
        self._root = solution.root
        return solution.factors

    def _advance(
        self, penalty: StatefulPenalty, grouping: Grouping, shares: Tensor, strength: float
    ) -> Tensor:
        if not self._state:
            member = torch.ones(self._groups.member_count, dtype=shares.dtype, device=shares.device)
            self._state = penalty.start(member)
        before = {name: grouping.means(values) for name, values in self._state.items()}
        factors, after = penalty.advance(shares, strength, before)
        for name, values in self._state.items():
            values.add_(grouping.to_members(after[name] - before[name], other=0.0))
        return factors

    def _project(self, grouping: Grouping, factors: Tensor) -> Tensor:
        assert isinstance(self._penalty, ProjectingPenalty)
        assert self._before is not None
        products = grouping.sums(self._groups.member_products(self._before, self._groups.parameters()))
        squares = grouping.sums(self._groups.member_products(self._before, self._before))
        self._before = None
        return factors * self._penalty.stays(factors * products, squares)

    def state_dict(self) -> dict[str, Any]:
        """Budget, costs, coefficients and the last root: tensors and numbers only."""
        return {
            "terms": [self._terms.budget, self._terms.cost],
            "state": {name: values.clone() for name, values in self._state.items()},
            "root": self._root,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Raises:
            ArtifactError: If the coefficients are those of another penalty.
        """
        stateful = isinstance(self._penalty, StatefulPenalty)
        if state["state"] and not stateful:
            raise ArtifactError(
                "the optimizer state is from another penalty",
                expected=f"one without coefficients, as {self._penalty.name} has none",
                got=", ".join(state["state"]),
            )
        budget, cost = state["terms"]
        device = self._groups.parameters()[0].device
        self.price(Terms(float(budget), None if cost is None else cost.to(device)))
        self._state = {name: values.to(device, copy=True) for name, values in state["state"].items()}
        root = state.get("root")
        self._root = None if root is None else root.to(device, copy=True)


def spared(factors: Tensor, fits: Tensor, terms: Terms, norms: Callable[[], Tensor]) -> Tensor:
    """Factors that leave at least what fits the budget, and everything where all of it fits.

    Args:
        factors: Shape ``(..., groups)``.
        fits: Shape ``(...)``, boolean: where everything that lives fits the budget.
        terms: Budget of every row and cost of the groups.
        norms: Gives norms of the factors' shape, zero for dead groups; asked only where too little is left.

    >>> norms = torch.tensor([3.0, 1.0, 2.0])
    >>> spared(torch.tensor([0.5, 0.0, 0.0]), torch.tensor(False), Terms(2, None), lambda: norms)
    tensor([0.5000, 0.0000, 1.0000])
    >>> spared(torch.tensor([0.5, 0.0, 0.0]), torch.tensor(True), Terms(3, None), lambda: norms)
    tensor([1., 1., 1.])
    """
    if bool(fits.all()):
        return factors.fill_(1.0)
    short = _cost(factors, terms) < terms.budget
    if bool(short.any()):
        stays = strongest(norms(), terms.budget, terms.cost)
        factors = torch.where(short.unsqueeze(-1) & stays & (factors == 0), 1.0, factors)
    return torch.where(fits.unsqueeze(-1), 1.0, factors) if bool(fits.any()) else factors


def _cost(values: Tensor, terms: Terms) -> Tensor:
    """What the groups that are not zero cost, shape ``(...)``."""
    # Neither count makes a copy of the values; a norm of order 0 counts in their type, exactly in short rows.
    if terms.cost is None and values.ndim == 1:
        return torch.count_nonzero(values)
    if terms.cost is None:
        count: Tensor = torch.linalg.vector_norm(values, ord=0, dim=-1)
        return count
    return ((values > 0) * terms.cost).sum(-1)
