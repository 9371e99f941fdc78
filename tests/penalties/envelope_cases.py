"""Random envelopes, and slow but independent ways to compute what they should give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize, minimize_scalar
from torch import Tensor

from hwprune.penalties import GroupEnvelope

FloatArray = npt.NDArray[np.float64]

#: Examples per property: a few in the quick run, thousands in the slow one.
EXAMPLES = [pytest.param(60, id="quick"), pytest.param(3000, id="thousands", marks=pytest.mark.slow)]


@dataclass(frozen=True)
class Case:
    """An envelope's arguments with everything filled in."""

    norms: Tensor
    ridge: Tensor
    cost: Tensor
    budget: float
    strength: float

    def envelope(self, *, debias: bool) -> GroupEnvelope:
        return GroupEnvelope(self.budget, self.ridge, self.cost, debias=debias)

    @property
    def quadratic(self) -> float:
        """``1/2 sum a t^2``."""
        return float((self.ridge * self.norms.square()).sum() / 2)

    @property
    def within_budget(self) -> bool:
        return float(self.cost[self.norms > 0].sum()) <= self.budget


def positive(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False, allow_subnormal=False)


@st.composite
def cases(
    draw: st.DrawFn, *, unit_cost: bool = False, whole_budget: bool = False, steep: bool = False
) -> Case:
    """Between 1 and 7 groups, with zeros and ties among the norms.

    The strength suits the exact form, or (``steep``) is anything from tiny to huge.
    """
    groups = draw(st.integers(1, 7))
    norm = st.one_of(st.sampled_from([0.0, 0.5, 1.0, 2.0]), positive(1e-3, 10.0))
    weights = st.lists(positive(0.1, 10.0), min_size=groups, max_size=groups)
    ridge = torch.tensor(draw(st.one_of(st.just([1.0] * groups), weights)), dtype=torch.float64)
    cost = torch.tensor([1.0] * groups if unit_cost else draw(weights), dtype=torch.float64)
    norms = draw(st.lists(norm, min_size=groups, max_size=groups))
    budget = (
        float(draw(st.integers(1, groups))) if whole_budget else draw(positive(0.05, 1.1)) * float(cost.sum())
    )
    strength = 10 ** draw(st.floats(-6, 6)) if steep else draw(positive(0.001, 0.95)) / float(ridge.max())
    return Case(torch.tensor(norms, dtype=torch.float64), ridge, cost, budget, strength)


def holds(strategy: st.SearchStrategy[Case], examples: int, check: Callable[[Case], None]) -> None:
    """Runs ``check`` on that many examples, the same ones every time."""
    limits = settings(max_examples=examples, deadline=None, derandomize=True, database=None)

    @limits
    @given(strategy)
    def run(case: Case) -> None:
        check(case)

    run()


def objective(case: Case, shrunk: Tensor, *, debias: bool) -> float:
    """What the proximal operator minimises, at norms ``shrunk`` (directions are the same)."""
    distance = (shrunk - case.norms).square().sum() / 2
    return float(distance + case.strength * case.envelope(debias=debias).value(shrunk))


def least_objective(case: Case, *, debias: bool) -> float:
    """What a general solver reaches on the norms themselves, from several points; it may stop short."""
    norms = case.norms.numpy()
    envelope = case.envelope(debias=debias)

    def with_gradient(point: FloatArray) -> tuple[float, FloatArray]:
        shrunk = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        reached = (shrunk - case.norms).square().sum() / 2 + case.strength * envelope.value(shrunk)
        (gradient,) = torch.autograd.grad(reached, shrunk)
        return float(reached.detach()), np.nan_to_num(gradient.numpy())

    starts = [norms, 0.5 * norms, np.where(norms == norms.max(), norms, 1e-3 * norms)]
    bounds = [(0.0, float(norms.max()) + 1.0)] * norms.size
    return min(
        float(minimize(with_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds).fun)
        for start in starts
    )


def solve_numerically(case: Case, terms: Callable[[FloatArray], FloatArray]) -> float:
    """The minimum of a sum of convex terms of u over the constraints on u, by a general solver.

    It stops short of the minimum where groups differ by orders of magnitude, so it starts from two points:
    all groups alike, and in proportion to their norms.
    """
    alike, cost = np.ones(case.norms.numel()), case.cost.numpy()
    like_norms = np.maximum(case.norms.numpy() * np.sqrt(case.ridge.numpy() / cost), 1e-9)
    starts = [np.clip(0.99 * case.budget / float(cost @ u) * u, 1e-12, 1.0) for u in (alike, like_norms)]
    return min(_solve_from(start, case, terms) for start in starts)


def _solve_from(start: FloatArray, case: Case, terms: Callable[[FloatArray], FloatArray]) -> float:
    groups = case.norms.numel()
    result = minimize(
        lambda u: float(terms(u).sum()),
        start,
        method="SLSQP",
        bounds=[(1e-12, 1.0)] * groups,
        constraints=[LinearConstraint(case.cost.numpy()[None, :], -np.inf, case.budget)],
        options={"maxiter": 500, "ftol": 1e-14},
    )
    # The solver leaves its constraints a little; a point inside them is what it has really found.
    inside = np.clip(result.x, 1e-12, 1.0)
    inside *= min(1.0, case.budget / float(case.cost.numpy() @ inside))
    return float(terms(inside).sum())


def dual_bound(case: Case) -> float:
    """The greatest lower bound on the value that a multiplier of the budget gives, by a search along it.

    ``max_m sum_j min_u (a_j t_j^2 / (2 u) + m c_j u) - m B`` over u in (0, 1]: by duality it is the minimum.
    """
    energy = (case.ridge * case.norms.square()).numpy()
    energy, cost = energy[energy > 0], case.cost.numpy()[energy > 0]

    def bound(log_multiplier: float) -> float:
        multiplier = np.exp(log_multiplier)
        u = np.minimum(1.0, np.sqrt(energy / (2 * multiplier * cost)))
        return float((energy / (2 * u) + multiplier * cost * u).sum() - multiplier * case.budget)

    found = minimize_scalar(lambda at: -bound(at), bounds=(-60.0, 60.0), method="bounded")
    return max(bound(float(found.x)), bound(-60.0)) if energy.size else 0.0


def openings_by_sorting(case: Case, *, debias: bool, strength: float) -> Tensor:
    """The openings of the proximal step, from all breakpoints in order."""
    pull = strength * case.ridge
    room = 1 - pull if debias else torch.ones_like(pull)
    gain, offset = (case.ridge / case.cost).sqrt() / room, pull / room
    slope, alive = gain * case.norms, case.norms > 0
    if float(case.cost[alive].sum()) <= case.budget:
        return alive.double()

    def spent(root: Tensor) -> float:
        return float((case.cost * (slope * root - offset).clamp(0.0, 1.0)).sum())

    ends = torch.cat([offset[alive] / slope[alive], (1 + offset[alive]) / slope[alive]]).sort().values
    ends = torch.cat([torch.zeros(1, dtype=torch.float64), ends])
    values = [spent(end) for end in ends]
    last = next(index for index, value in enumerate(values) if value >= case.budget)
    low, high = values[last - 1], values[last]
    root = ends[last - 1] + (ends[last] - ends[last - 1]) * (case.budget - low) / (high - low)
    return (slope * root - offset).clamp(0.0, 1.0)


def factors_by_sorting(case: Case, *, debias: bool) -> Tensor:
    """The factors of the proximal step; 0 for groups of norm 0."""
    opened = openings_by_sorting(case, debias=debias, strength=case.strength)
    pull = case.strength * case.ridge
    room = 1 - pull if debias else torch.ones_like(pull)
    return opened / (opened * room + pull)
