"""What must hold for every envelope, on random ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from envelope_cases import (
    EXAMPLES,
    Case,
    cases,
    dual_bound,
    factors_by_sorting,
    holds,
    least_objective,
    objective,
    openings_by_sorting,
    positive,
    solve_numerically,
)
from hypothesis import strategies as st
from torch import Tensor

from hwprune.penalties import GroupEnvelope, GroupLasso, Halo, soft_threshold

every_amount = pytest.mark.parametrize("examples", EXAMPLES)
both_forms = pytest.mark.parametrize("debias", [True, False], ids=["exact", "plain"])


@every_amount
def test_value_is_the_minimum_over_the_openings(examples: int) -> None:
    def check(case: Case) -> None:
        energy = (case.ridge * case.norms.square()).numpy()
        least = solve_numerically(case, lambda u: energy / u / 2)
        value = float(case.envelope(debias=False).value(case.norms))
        assert value <= least * (1 + 1e-9) + 1e-12
        assert value >= dual_bound(case) * (1 - 1e-9) - 1e-12

    holds(cases(), examples, check)


@every_amount
@both_forms
def test_prox_is_no_worse_than_a_constrained_optimiser(examples: int, debias: bool) -> None:
    def check(case: Case) -> None:
        norms, pull = case.norms.numpy(), (case.strength * case.ridge).numpy()

        def terms(u: np.ndarray) -> np.ndarray:
            # the minimum over x of 1/2 (x - t)^2 + 1/2 q x^2 (1 / u - [exact])
            left = pull * (1 - u) if debias else pull
            return norms**2 / 2 * left / (u + left)

        least = solve_numerically(case, terms)
        factors = case.envelope(debias=debias).prox_factors(case.norms, case.strength)
        reached = objective(case, factors * case.norms, debias=debias)
        assert reached <= least * (1 + 1e-9) + 1e-9
        assert reached >= least * (1 - 1e-5) - 1e-6

    holds(cases(steep=not debias), examples, check)


@every_amount
@both_forms
def test_prox_is_no_worse_than_a_general_solver_on_the_norms(examples: int, debias: bool) -> None:
    def check(case: Case) -> None:
        factors = case.envelope(debias=debias).prox_factors(case.norms, case.strength)
        reached = objective(case, factors * case.norms, debias=debias)
        assert reached <= least_objective(case, debias=debias) * (1 + 1e-9) + 1e-9

    holds(cases(steep=not debias), examples // 6, check)


@every_amount
@both_forms
def test_prox_is_no_worse_than_random_rivals(examples: int, debias: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def check(case: Case) -> None:
        factors = case.envelope(debias=debias).prox_factors(case.norms, case.strength)
        reached = objective(case, factors * case.norms, debias=debias)
        for spread in (1.0, 1e-2, 1e-4):
            step = spread * torch.randn(case.norms.shape, generator=generator, dtype=torch.float64)
            rival = (factors * case.norms + step * case.norms.amax()).clamp_min(0.0)
            assert reached <= objective(case, rival, debias=debias) + 1e-12 * max(1.0, reached)

    holds(cases(), examples, check)


@every_amount
@both_forms
def test_prox_equals_the_one_from_sorted_breakpoints(examples: int, debias: bool) -> None:
    def check(case: Case) -> None:
        expected = factors_by_sorting(case, debias=debias)
        found = case.envelope(debias=debias).prox_factors(case.norms, case.strength)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    holds(cases(steep=not debias), examples, check)


@every_amount
@both_forms
def test_openings_use_up_the_budget(examples: int, debias: bool) -> None:
    def check(case: Case) -> None:
        factors = case.envelope(debias=debias).prox_factors(case.norms, case.strength)
        pull = case.strength * case.ridge
        room = 1 - pull if debias else torch.ones_like(pull)
        opened = factors * pull / (1 - factors * room)
        alive = float(case.cost[case.norms > 0].sum())
        assert float((case.cost * opened).sum()) == pytest.approx(min(case.budget, alive), rel=1e-9)
        assert ((factors >= 0) & (factors <= 1)).all()

    holds(cases(), examples, check)


@every_amount
def test_moreau_identity_of_the_plain_form(examples: int) -> None:
    """``w = prox_{L S}(w) + L prox_{S* / L}(w / L)``: the rest over L is a subgradient, and conversely."""

    def check(case: Case) -> None:
        envelope = case.envelope(debias=False)
        point = envelope.prox_factors(case.norms, case.strength) * case.norms
        dual = (case.norms - point) / case.strength
        paired = float(envelope.value(point) + envelope.conjugate(dual))
        # The difference of two norms is rounded before it is divided by the strength.
        rounding = 1e-12 * float(case.norms.square().sum()) * (1 + 1 / case.strength)
        assert paired == pytest.approx(float((point * dual).sum()), rel=1e-9, abs=1e-9 + rounding)

    holds(cases(unit_cost=True), examples, check)
    holds(cases(steep=True), examples, check)


@every_amount
@pytest.mark.parametrize("which", ["group lasso", "l1", "halo"])
def test_moreau_identity_of_the_lassos(examples: int, which: str) -> None:
    """``w = prox_{L f}(w) + L P(w / L)`` with the projection on the dual ball of every group."""

    def check(case: Case) -> None:
        radii, signs = torch.ones_like(case.norms), torch.ones_like(case.norms)
        if which == "halo":
            halo = Halo(xi=float(case.cost[0]), psi=0.0, total=case.budget)
            factors = halo.prox_factors(case.norms, case.strength, case.ridge)
            radii = halo.xi / case.ridge.square()
        elif which == "l1":
            signs[::2] = -1
            factors = soft_threshold(signs * case.norms, case.strength) / (signs * case.norms)
            factors = torch.where(case.norms > 0, factors, 0.0)
        else:
            factors = GroupLasso().prox_factors(case.norms, case.strength)
        projected = torch.minimum(case.norms / case.strength, radii)
        whole = factors * case.norms + case.strength * projected
        torch.testing.assert_close(whole, case.norms, rtol=1e-12, atol=1e-12)

    holds(cases(steep=True), examples, check)


@every_amount
def test_fenchel_young_inequality(examples: int) -> None:
    generator = torch.Generator().manual_seed(1)

    def check(case: Case) -> None:
        envelope = case.envelope(debias=False)
        dual = 5 * torch.rand(case.norms.shape, generator=generator, dtype=torch.float64)
        bound = float((case.norms * dual).sum())
        assert float(envelope.value(case.norms) + envelope.conjugate(dual)) >= bound * (1 - 1e-12)

    holds(cases(), examples, check)


@every_amount
def test_value_meets_the_quadratic_exactly_on_sparse_points(examples: int) -> None:
    def check(case: Case) -> None:
        plain = float(case.envelope(debias=False).value(case.norms))
        exact = float(case.envelope(debias=True).value(case.norms))
        assert exact == pytest.approx(plain - case.quadratic, rel=1e-9, abs=1e-9 * case.quadratic)
        if case.within_budget:
            assert exact == 0
            assert plain == pytest.approx(case.quadratic, rel=1e-12)
        else:
            assert exact > 0.0
            assert plain > case.quadratic

    holds(cases(unit_cost=True, whole_budget=True), examples, check)
    holds(cases(), examples, check)


@every_amount
def test_value_is_convex_and_below_the_sparse_quadratic(examples: int) -> None:
    """The plain form lies below the restricted quadratic's convex combinations."""
    generator = torch.Generator().manual_seed(2)

    def check(case: Case) -> None:
        envelope = case.envelope(debias=False)
        other = case.norms.amax() * torch.rand(case.norms.shape, generator=generator, dtype=torch.float64)
        share = float(torch.rand((), generator=generator))
        between = envelope.value(share * case.norms + (1 - share) * other)
        above = share * envelope.value(case.norms) + (1 - share) * envelope.value(other)
        assert float(between) <= float(above) * (1 + 1e-12)

    holds(cases(), examples, check)


@every_amount
@both_forms
def test_permutation_and_scale_equivariance(examples: int, debias: bool) -> None:
    generator = torch.Generator().manual_seed(3)

    def check(case: Case) -> None:
        envelope = case.envelope(debias=debias)
        order = torch.randperm(case.norms.numel(), generator=generator)
        moved = GroupEnvelope(case.budget, case.ridge[order], case.cost[order], debias=debias)
        close = {"rtol": 1e-9, "atol": 1e-12}
        factors, value = envelope.prox_factors(case.norms, case.strength), envelope.value(case.norms)
        torch.testing.assert_close(
            moved.prox_factors(case.norms[order], case.strength), factors[order], **close
        )
        torch.testing.assert_close(moved.value(case.norms[order]), value, **close)
        for scale in (1e-100, 3.7, 1e100):
            torch.testing.assert_close(
                envelope.prox_factors(scale * case.norms, case.strength), factors, **close
            )
            torch.testing.assert_close(
                envelope.value(scale * case.norms) / scale / scale, value, rtol=1e-9, atol=1e-12
            )

    holds(cases(), examples, check)


def half_squared_k_support_norm(weights: Tensor, k: int) -> float:
    """The closed form of Argyriou, Foygel and Srebro, Sparse Prediction with the k-Support Norm, 2012."""
    ordered = [math.inf, *weights.abs().sort(descending=True).values.tolist()]
    for r in range(k):
        tail = math.fsum(ordered[k - r :])
        if ordered[k - r - 1] > tail / (r + 1) >= ordered[k - r]:
            head = math.fsum(weight**2 for weight in ordered[1 : k - r])
            return (head + tail**2 / (r + 1)) / 2
    raise AssertionError("the closed form has a case for every vector")


@every_amount
def test_single_elements_give_half_the_squared_k_support_norm(examples: int) -> None:
    def check(case: Case) -> None:
        if not case.norms.any():
            return
        k = int(case.budget)
        value = float(GroupEnvelope(k, debias=False).value(case.norms))
        assert value == pytest.approx(half_squared_k_support_norm(case.norms, k), rel=1e-9)

    holds(cases(unit_cost=True, whole_budget=True), examples, check)


@every_amount
@both_forms
@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float64, 1e-12), (torch.float32, 1.2e-7)], ids=["float64", "float32"]
)
def test_a_batch_is_a_loop(examples: int, debias: bool, dtype: torch.dtype, rounding: float) -> None:
    generator = torch.Generator().manual_seed(4)
    close = {"rtol": rounding, "atol": rounding}

    def check(case: Case) -> None:
        rows = torch.rand((3, 2, case.norms.numel()), generator=generator, dtype=dtype)
        rows[0, 0], rows[1, 1] = case.norms.to(dtype), 0.0
        budgets = case.budget * torch.rand((3, 2), generator=generator, dtype=torch.float64)
        strengths = case.strength * torch.tensor([[1.0, 0.5], [0.0, 1.0], [0.9, 0.1]], dtype=torch.float64)
        batch = GroupEnvelope(budgets, case.ridge, case.cost, debias=debias)
        factors, values = batch.prox_factors(rows, strengths), batch.value(rows)
        for place in np.ndindex(3, 2):
            one = GroupEnvelope(float(budgets[place]), case.ridge, case.cost, debias=debias)
            alone = one.prox_factors(rows[place], float(strengths[place]))
            torch.testing.assert_close(factors[place], alone, **close)
            torch.testing.assert_close(values[place], one.value(rows[place]), **close)

    holds(cases(), examples, check)


@every_amount
@both_forms
def test_gradient_is_the_finite_difference(examples: int, debias: bool) -> None:
    def check(case: Case) -> None:
        envelope = case.envelope(debias=debias)
        norms = case.norms.clamp_min(0.05).requires_grad_()
        (gradient,) = torch.autograd.grad(envelope.value(norms), norms)
        step = 1e-6 * float(norms.detach().amax())
        for group in range(norms.numel()):
            moved = torch.zeros_like(norms)
            moved[group] = step
            with torch.no_grad():
                slope = (envelope.value(norms + moved) - envelope.value(norms - moved)) / (2 * step)
                size = float(envelope.value(norms)) + case.quadratic
            # the second derivative may jump at a breakpoint, the first does not
            assert float(gradient[group]) == pytest.approx(float(slope), rel=1e-4, abs=1e-4 * (1 + size))

    holds(cases(), examples, check)


@every_amount
@both_forms
def test_float32_is_exact_to_its_rounding(examples: int, debias: bool) -> None:
    def check(case: Case) -> None:
        rounded = case.norms.float()
        same = Case(rounded.double(), case.ridge, case.cost, case.budget, case.strength)
        expected = factors_by_sorting(same, debias=debias)
        found = case.envelope(debias=debias).prox_factors(rounded, case.strength)
        assert found.dtype == torch.float32
        # Two roundings of a number below 1.
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1.2e-7)

    holds(cases(), examples, check)


@every_amount
@both_forms
def test_values_and_gradients_of_float32_are_exact_to_its_rounding(examples: int, debias: bool) -> None:
    def check(case: Case) -> None:
        envelope, rounded = case.envelope(debias=debias), case.norms.float().requires_grad_()
        exact = rounded.detach().double().requires_grad_()
        value, expected = envelope.value(rounded), envelope.value(exact)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1.2e-7, atol=1e-40)
        (found,), (gradient,) = torch.autograd.grad(value, rounded), torch.autograd.grad(expected, exact)
        torch.testing.assert_close(found.double(), gradient, rtol=3e-7, atol=1e-40)

    holds(cases(), examples, check)


@every_amount
def test_any_start_ends_at_the_same_root(examples: int) -> None:
    strategy = st.tuples(cases(), positive(1e-12, 1e12))

    def check(pair: tuple[Case, float]) -> None:
        case, start = pair
        envelope = case.envelope(debias=True)
        cold = envelope.solve(case.norms, case.strength)
        for guess in (start, 0.0, math.nan, math.inf, float(cold.root)):
            warm = envelope.solve(case.norms, case.strength, torch.tensor([guess]))
            torch.testing.assert_close(warm.factors, cold.factors, rtol=0, atol=1e-12)

    holds(strategy, examples, check)


@every_amount
def test_value_openings_are_those_of_a_vanishing_strength(examples: int) -> None:
    """The gradient of S is ``a t / u``, with the openings that the prox has in the limit."""

    def check(case: Case) -> None:
        norms = case.norms.clamp_min(0.05).requires_grad_()
        (gradient,) = torch.autograd.grad(case.envelope(debias=False).value(norms), norms)
        same = Case(norms.detach(), case.ridge, case.cost, case.budget, case.strength)
        opened = openings_by_sorting(same, debias=False, strength=0.0)
        torch.testing.assert_close(gradient, case.ridge * same.norms / opened, rtol=1e-9, atol=1e-12)

    holds(cases(), examples, check)
