"""Pruning by magnitude: once when the support settles, or at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from hwprune.penalties.base import (
    COST_ROUNDING,
    check_budget,
    check_norms,
    check_positive,
    check_strength,
    fitted,
    in_rows,
    only_number,
    per_row,
)


def strongest(norms: Tensor, budget: float | Tensor, cost: Tensor | None = None) -> Tensor:
    """The groups that stay when the strongest are taken first until the budget is used up.

    The order is ``t_j^2 / c_j``, largest first (ties: lowest index first), and stops at the first group
    that does not fit. With unit cost these are the ``floor(B)`` largest norms: the projection onto at most
    that many groups, ``argmin_x |x - w|^2 s.t. at most B groups of x are not zero``. With costs it is the
    greedy answer to a knapsack (Dantzig, Discrete-variable extremum problems, 1957).

    Args:
        norms: Shape ``(..., groups)``.
        budget: A number, or shape ``(...)``.
        cost: Shape ``(groups,)``, positive; ``None`` for ones.

    Returns:
        Boolean, shape ``(..., groups)``; groups of norm 0 do not stay.

    Raises:
        InputError: If a norm, a cost or the budget is not as said.

    >>> strongest(torch.tensor([1.0, 3.0, 2.0]), 2)
    tensor([False,  True,  True])
    >>> strongest(torch.tensor([1.0, 3.0, 2.0]), 2, cost=torch.tensor([1.0, 16.0, 1.0]))
    tensor([ True, False,  True])
    """
    check_norms(norms)
    check_budget(budget, "strongest")
    check_positive("cost", cost, "strongest")
    count = only_number(budget)
    if cost is None and count is not None:
        return largest(norms, math.floor(min(count * (1 + COST_ROUNDING), norms.shape[-1]))) & (norms > 0)
    weights = fitted("cost", cost, norms).expand(norms.shape[-1])
    # t / sqrt(c) is in the same order as t^2 / c and neither overflows nor underflows.
    order = (norms / weights.sqrt()).sort(dim=-1, descending=True, stable=True).indices
    spent = weights[order].cumsum(-1)
    limit = in_rows("budget", budget, norms) * (1 + COST_ROUNDING)
    fits = spent <= limit.unsqueeze(-1)
    stays = torch.zeros(norms.shape, dtype=torch.bool, device=norms.device)
    return stays.scatter(-1, order, fits) & (norms > 0)


def largest(norms: Tensor, count: int) -> Tensor:
    """The ``count`` largest of every row, of ties the first: selection instead of sorting.

    Args:
        norms: Shape ``(..., groups)``.
        count: From 0 to the number of groups.

    Returns:
        Boolean, shape ``(..., groups)``.
    """
    if count == 0 or not norms.numel():
        return torch.zeros_like(norms, dtype=torch.bool)
    least = norms.detach().kthvalue(norms.shape[-1] - count + 1, dim=-1, keepdim=True).values
    above, tied = norms > least, norms == least
    room = count - above.sum(-1, keepdim=True)
    return above | (tied & (tied.cumsum(-1) <= room))


@dataclass(frozen=True, slots=True)
class Magnitude:
    """No pull at all, ``argmin_x 1/2 |x - w|^2 = w``: one-shot pruning by norm when the support settles.

    Source: Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015,
    with norms of groups for magnitudes of weights.

    >>> Magnitude().prox_factors(torch.tensor([2.0, 0.5]), 1.0)
    tensor([1., 1.])
    """

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return "magnitude"

    @property
    def strength_scale(self) -> float:
        """There is no strength to scale."""
        return 1.0

    def value(self, norms: Tensor) -> Tensor:
        """Zero, shape ``(..., groups)`` to ``(...)``."""
        check_norms(norms)
        return norms.new_zeros(norms.shape[:-1])

    def prox_factors(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        """Ones: nothing is shrunk."""
        check_norms(norms)
        per_row(strength, norms)
        return torch.ones_like(norms)

    def replace_budget(self, budget: float | Tensor, cost: Tensor | None) -> Self:
        """Itself."""
        return self


@dataclass(frozen=True, slots=True, eq=False)
class HardThreshold:
    """The constraint itself, ``0`` within the budget and infinite outside: a projection at every step.

    Source: Blumensath and Davies, Iterative hard thresholding for compressed sensing, 2009.

    Attributes:
        budget: Groups, or the sum of costs, that may stay: a number, or shape ``(...)``.
        cost: Shape ``(groups,)``, positive; ``None`` for ones.

    Raises:
        InputError: If a cost is not positive or the budget is negative.

    >>> HardThreshold(budget=1).prox_factors(torch.tensor([2.0, 0.5]), 0.1)
    tensor([1., 0.])
    """

    budget: float | Tensor = float("inf")
    cost: Tensor | None = None

    def __post_init__(self) -> None:
        check_positive("cost", self.cost, "HardThreshold")
        check_budget(self.budget, "HardThreshold")

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return "hard-threshold"

    @property
    def strength_scale(self) -> float:
        """Any strength but 0 does the same."""
        return 1.0

    def value(self, norms: Tensor) -> Tensor:
        """Shape ``(..., groups)`` to ``(...)``: 0 or infinity."""
        check_norms(norms)
        spent = torch.where(norms > 0, fitted("cost", self.cost, norms), 0.0).sum(-1)
        limit = in_rows("budget", self.budget, norms) * (1 + COST_ROUNDING)
        return torch.where(spent <= limit, 0.0, torch.inf).to(norms.dtype)

    def prox_factors(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        """``argmin_x 1/2 |x - w|^2 s.t. sum_j c_j [x_j != 0] <= B``: 1 or 0, see :func:`strongest`.

        Args:
            norms: Shape ``(..., groups)``.
            strength: Only whether it is 0 matters: a number, or a tensor of shape ``()`` or ``(...)``.

        Returns:
            Shape ``(..., groups)``.
        """
        stays = strongest(norms, self.budget, self.cost)
        check_strength(strength)
        # In double precision: a strength that is 0 in the type of the norms is none.
        pulled = in_rows("strength", strength, norms).unsqueeze(-1) > 0
        return torch.where(pulled, stays.to(norms.dtype), 1.0)

    def replace_budget(self, budget: float | Tensor, cost: Tensor | None) -> Self:
        """The same with another budget and costs."""
        return replace(self, budget=budget, cost=cost)
