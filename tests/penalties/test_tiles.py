"""Rows of more groups than a tile holds, cut small here, end where rows in one tile do."""

import pytest
import torch
from envelope_cases import Case, factors_by_sorting

from hwprune.errors import InputError
from hwprune.penalties import GroupEnvelope, ramps, roots

both_forms = pytest.mark.parametrize("debias", [True, False], ids=["exact", "plain"])
GROUPS = 1000


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 64 groups, and samples of 32."""
    monkeypatch.setattr(ramps, "_CPU_TILE", 64)
    monkeypatch.setattr(ramps, "_ONLY_CPU_TILE", 64)
    monkeypatch.setattr(roots, "SAMPLE", 32)


def random_case(share, strength):
    generator = torch.Generator().manual_seed(0)
    norms, ridge, cost = torch.randn(3, GROUPS, generator=generator, dtype=torch.float64).exp()
    norms[::9], norms[1::9] = 0.0, 1.0
    return Case(norms, ridge, cost, share * float(cost.sum()), strength / float(ridge.max()))


@both_forms
@pytest.mark.parametrize("share", [1e-3, 0.3, 0.8, 2.0])
@pytest.mark.parametrize("strength", [1e-3, 0.9])
def test_many_tiles_of_unequal_costs_give_the_factors_from_sorted_breakpoints(
    small_tiles, debias, share, strength
):
    case = random_case(share, strength)
    found = case.envelope(debias=debias).solve(case.norms, case.strength)
    expected = factors_by_sorting(case, debias=debias)
    torch.testing.assert_close(found.factors, expected, rtol=0, atol=1e-12)
    rows = case.norms.repeat(3, 1)
    several = case.envelope(debias=debias).prox_factors(rows, case.strength)
    torch.testing.assert_close(several, expected.repeat(3, 1), rtol=0, atol=1e-12)


@both_forms
def test_many_tiles_have_the_value_of_one(debias, monkeypatch, request):
    case = random_case(0.3, 0.5)
    whole = case.envelope(debias=debias).value(case.norms)
    request.getfixturevalue("small_tiles")
    torch.testing.assert_close(case.envelope(debias=debias).value(case.norms), whole, rtol=1e-12, atol=0)


@both_forms
def test_many_tiles_of_float32_rows_that_open_alike(small_tiles, debias):
    rows = torch.rand(2, GROUPS, generator=torch.Generator().manual_seed(1))
    found = GroupEnvelope(300, debias=debias).prox_factors(rows, 0.2)
    wide = GroupEnvelope(300, debias=debias).prox_factors(rows.double(), 0.2)
    torch.testing.assert_close(found.double(), wide, rtol=0, atol=4e-7)


@pytest.fixture
def long_row(monkeypatch):
    """Norms of a row in tiles of 64 groups, of which every third makes up the sample."""
    monkeypatch.setattr(ramps, "_CPU_TILE", 64)
    monkeypatch.setattr(ramps, "_ONLY_CPU_TILE", 64)
    monkeypatch.setattr(roots, "SAMPLE", 100)
    monkeypatch.setattr(roots, "_WORTH_SAMPLING", 2)
    return torch.rand(310, generator=torch.Generator().manual_seed(2))


@both_forms
@pytest.mark.parametrize("budget", [0, 0.5, 90, 310, float("inf")])
def test_a_long_row_of_groups_that_open_alike(long_row, debias, budget):
    assert roots.sample_stride(long_row.numel()) == 3
    envelope = GroupEnvelope(budget, debias=debias)
    found, wide = envelope.solve(long_row, 0.2), envelope.solve(long_row.double(), 0.2)
    torch.testing.assert_close(found.factors.double(), wide.factors, rtol=0, atol=4e-7)
    warm = envelope.solve(long_row, 0.2, 1.001 * found.root, out=long_row)
    torch.testing.assert_close(warm.factors, found.factors, rtol=0, atol=4e-7)


@pytest.mark.parametrize("place", [0, 100, 309])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_a_long_row_is_refused_before_anything_is_written(long_row, place, wrong):
    long_row[place] = wrong
    kept = long_row.clone()
    for start in (None, torch.tensor([2.0], dtype=torch.float64)):
        with pytest.raises(InputError, match="finite and not negative"):
            GroupEnvelope(90).solve(long_row, 0.2, start, out=long_row)
        torch.testing.assert_close(long_row, kept, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-34, 1e34])
def test_a_long_row_near_the_bounds_of_float32(long_row, scale):
    norms = scale * long_row
    expected = GroupEnvelope(90).prox_factors(norms.double(), 0.2)
    found = GroupEnvelope(90).prox_factors(norms, 0.2)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=4e-7)


def test_a_long_row_whose_sample_is_all_zero(long_row):
    long_row[::3] = 0.0
    expected = GroupEnvelope(90).prox_factors(long_row.double(), 0.2)
    found = GroupEnvelope(90).prox_factors(long_row, 0.2)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=4e-7)
