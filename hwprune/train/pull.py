"""One penalty at work on the groups of a network: how much of each group it leaves at a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hwprune.errors import ArtifactError
from hwprune.groups.base import Grouping, GroupSet, Terms
from hwprune.penalties import Penalty, ProjectingPenalty, StatefulPenalty, strongest

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

    def price(self, terms: Terms) -> None:
        """Takes the budget of a new grouping."""
        self._terms = terms
        self._penalty = self._penalty.replace_budget(terms.budget, terms.cost)

    def remember(self) -> None:
        """Notes the point before an optimiser's step, where the penalty compares it with the one after."""
        if isinstance(self._penalty, ProjectingPenalty):
            self._before = [tensor.detach().clone() for tensor in self._groups.parameters()]

    def factors(self, grouping: Grouping, member_norms: Tensor, strength: float) -> Tensor:
        """What every group is multiplied by, shape ``(..., groups)``.

        Args:
            grouping: The groups at present.
            member_norms: Shape ``(members,)``; zero for dead members. Their memory is used again.
            strength: The schedule's, positive.
        """
        projects = isinstance(self._penalty, ProjectingPenalty) and self._before is not None
        # Norms are needed twice by projections only; everything else may overwrite them.
        shares = grouping.shares(member_norms.clone() if projects else member_norms)
        strength = strength * self._penalty.strength_scale
        if isinstance(self._penalty, StatefulPenalty):
            factors = self._advance(self._penalty, grouping, shares, strength)
        else:
            factors = self._penalty.prox_factors(shares, strength)
        if projects:
            factors = self._project(grouping, factors)
        return spared(factors, shares, self._terms)

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
        """Budget, costs and coefficients: tensors and numbers only."""
        return {"terms": [self._terms.budget, self._terms.cost], "state": dict(self._state)}

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


def spared(factors: Tensor, norms: Tensor, terms: Terms) -> Tensor:
    """Factors that leave at least what fits the budget, and everything where all of it fits.

    Args:
        factors: Shape ``(..., groups)``.
        norms: Same shape; zero for dead groups.
        terms: Budget of every row and cost of the groups.

    >>> spared(torch.tensor([0.5, 0.0, 0.0]), torch.tensor([3.0, 1.0, 2.0]), Terms(2, None))
    tensor([0.5000, 0.0000, 1.0000])
    >>> spared(torch.tensor([0.5, 0.0, 0.0]), torch.tensor([3.0, 0.0, 2.0]), Terms(2, None))
    tensor([1., 1., 1.])
    """
    fits = _cost(norms, terms) <= terms.budget * (1 + ROUNDING)
    if bool(fits.all()):
        return torch.ones_like(factors)
    short = _cost(factors, terms) < terms.budget
    if bool(short.any()):
        stays = strongest(norms, terms.budget, terms.cost)
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
