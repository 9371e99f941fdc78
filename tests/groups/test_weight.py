import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hwprune.errors import GraphError, InputError
from hwprune.groups import weight
from hwprune.groups.flat import TYPICAL_SHARE, find_layers
from hwprune.groups.weight import WeightGroups, largest, layer_adaptive_scores_
from hwprune.penalties import make_penalty
from hwprune.train.prox import ProximalStep
from hwprune.train.schedule import StrengthSchedule


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.LayerNorm(5)
    )


def test_members_are_the_weights_of_convolutions_and_linear_layers(network):
    groups = WeightGroups(network)
    assert groups.member_count == groups.group_count == 4 * 2 * 9 + 16 * 5
    assert [layer.name for layer in groups.layers] == ["0", "4"]


def test_norms_and_scaling_agree_on_which_weight_is_which(network):
    groups = WeightGroups(network)
    norms = groups.member_norms()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    alive = torch.rand(groups.member_count) < 0.5
    groups.scale_(alive)
    assert torch.equal(groups.member_norms(), norms * alive)
    for parameter, old in zip(network.parameters(), before, strict=True):
        assert (torch.eq(parameter, old) | torch.eq(parameter, 0)).all()
    assert torch.equal(network[0].bias, before[1])


def test_factors_may_differ_from_weight_to_weight(network):
    groups = WeightGroups(network)
    norms, factors = groups.member_norms(), torch.rand(groups.member_count)
    groups.scale_(factors)
    torch.testing.assert_close(groups.member_norms(), norms * factors)


def test_momenta_follow_their_weights(network):
    groups = WeightGroups(network)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(3, 2, 4, 4)).square().sum().backward()
    optimizer.step()
    alive = torch.rand(groups.member_count) < 0.5
    groups.scale_(alive)
    groups.momenta_scale_(optimizer, alive)
    for layer in groups.layers:
        for key in ("exp_avg", "exp_avg_sq"):
            assert (optimizer.state[layer.tensor][key][layer.tensor == 0] == 0).all()


def test_shares_put_layers_on_one_scale(network):
    groups = WeightGroups(network)
    shares = groups.regroup(()).shares(groups.member_norms()).clone()
    assert shares.square().mean().sqrt() == pytest.approx(TYPICAL_SHARE, rel=1e-5)
    with torch.no_grad():
        network[4].weight.mul_(100)
    torch.testing.assert_close(groups.regroup(()).shares(groups.member_norms()), shares)


@pytest.mark.parametrize("count", [0, 1, 17, 87, 151, 152])
def test_survivors_are_exactly_as_many_as_allowed(network, count):
    groups = WeightGroups(network)
    alive = torch.ones(groups.member_count, dtype=torch.bool)
    kept = groups.allowance(lambda _total: count).survivors(groups.member_norms(), alive)
    assert kept.sum() == count


def test_the_dead_do_not_survive(network):
    groups = WeightGroups(network)
    alive = torch.arange(groups.member_count) < 10
    kept = groups.allowance(lambda _total: 20).survivors(groups.member_norms() * alive, alive)
    assert torch.equal(kept, alive)


def test_the_budget_of_the_envelope_comes_down_from_all_weights(network):
    groups = WeightGroups(network)
    allowance = groups.allowance(lambda total: total // 4)
    proximal = ProximalStep(groups, make_penalty("envelope"), allowance, StrengthSchedule(200, peak=0.2))
    living = []
    for _step in range(200):
        proximal.after_step()
        living.append(proximal.groups_alive)
    limits = [38 + (152 - 38) * proximal.schedule.slack(step) for step in range(1, 201)]
    assert all(alive >= limit - 1 for alive, limit in zip(living, limits, strict=True))
    assert living[30] < 152
    assert living[19] == 152
    assert living[110] == living[-1] == 38


def test_a_step_holds_two_numbers_and_two_flags_per_weight():
    model = nn.Linear(1000, 1000, bias=False)
    groups = WeightGroups(model)
    allowance = groups.allowance(lambda total: total // 2)
    penalty, schedule = make_penalty("magnitude"), StrengthSchedule(10, start=0.0, full=0.1)
    proximal = ProximalStep(groups, penalty, allowance, schedule)
    with StorageTracker() as tracker, torch.no_grad():
        proximal.after_step()
    assert not proximal.settled
    numbers, flags = 2 * 4, 2 * 1
    assert 8 * 10**6 <= tracker.peak_bytes <= (numbers + flags) * 10**6 + 10**5


class StorageTracker(TorchDispatchMode):
    """Bytes of the storages that operators have made and that are still in use, at their peak."""

    def __init__(self):
        super().__init__()
        self.live, self.peak_bytes = {}, 0

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        given = {tensor.untyped_storage()._cdata for tensor in tensors}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                key = storage._cdata
                if key not in given and key not in self.live:
                    self.live[key] = storage.nbytes()
                    weakref.finalize(storage, self.live.pop, key, None)
        self.peak_bytes = max(self.peak_bytes, sum(self.live.values()))
        return result


def test_a_large_layer_of_equal_weights_is_not_emptied():
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(10, 10))
    groups = WeightGroups(model)
    alive = torch.ones(groups.member_count, dtype=torch.bool)
    kept = groups.allowance(lambda _total: 50).survivors(groups.member_norms(), alive)
    assert min(left for _, left in groups.counts(kept).values()) >= 10


def test_scores_are_those_of_their_definition():
    norms = torch.rand(30, generator=torch.Generator().manual_seed(0))
    for norm, score in zip(norms, layer_adaptive_scores_(norms.clone()), strict=True):
        torch.testing.assert_close(score, norm**2 / norms[norms >= norm].square().sum())


@pytest.mark.parametrize("spread", [0.0, 1.0, 15.0], ids=["equal", "usual", "wide"])
def test_scores_in_bands_are_those_of_one_sort(spread):
    norms = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).mul(spread).exp()
    norms[::5], norms[::7] = 0.0, norms[7]
    ordered, order = norms.sort(descending=True, stable=True)
    energy = ordered.double().square()
    expected = torch.empty_like(norms).scatter_(0, order, (energy / energy.cumsum(0)).float())
    scores = layer_adaptive_scores_(norms.clone())
    torch.testing.assert_close(scores, expected)
    assert torch.equal(largest(scores.clone(), 9000), largest(expected, 9000))


def test_a_layer_of_zeros_has_shares_and_scores_of_zero(network):
    with torch.no_grad():
        network[0].weight.zero_()
    groups = WeightGroups(network)
    shares = groups.regroup(()).shares(groups.member_norms())
    assert (shares[:72] == 0).all()
    assert torch.isfinite(shares).all()
    assert not layer_adaptive_scores_(torch.zeros(3)).view(torch.int32).any()  # nor minus zero


def test_the_largest_are_those_of_a_sort():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)).round(decimals=2)
    for count in (1, 10, 500, 999, 1000, 2000):
        kept = largest(values, count)
        order = values.sort(descending=True, stable=True).indices[:count]
        assert torch.equal(torch.nonzero(kept).flatten(), order.sort().values)


def test_kept_layers_stay_dense_with_a_reason(network):
    groups = WeightGroups(network, keep=["0"])
    assert [layer.name for layer in groups.layers] == ["4"]
    assert list(groups.left_dense) == [("0", 72, "kept on request")]


def test_a_layer_that_is_none_is_named(network):
    with pytest.raises(InputError, match=r"no such layer to keep.*\['1'\]"):
        WeightGroups(network, keep=["1"])


def test_a_network_without_matrices_is_refused():
    with pytest.raises(GraphError, match="no weight matrix"):
        WeightGroups(nn.Sequential(nn.BatchNorm2d(3)))


def test_shared_and_packed_weights_count_once():
    linear = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": linear, "b": nn.Linear(4, 4), "c": nn.MultiheadAttention(4, 2)})
    model["b"].weight = linear.weight
    layers, _ = find_layers(model)
    assert [layer.name for layer in layers] == ["a", "c", "c.out_proj"]


class Own(nn.Module):
    """A linear layer as users write it."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(3, 5)), nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.ones(2, 2))


def test_every_other_matrix_is_told_with_its_reason():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(5, 5),
            "own": Own(),
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)),
            "embedding": nn.Embedding(7, 5),
        }
    )
    model["shared"] = model["own"]
    groups = WeightGroups(model, keep=[])
    assert [layer.name for layer in groups.layers] == ["linear"]
    assert groups.left_dense == [
        ("own.weight", 15, "weight of Own is not known as a weight matrix"),
        ("normed.parametrizations.weight.original0", 4, "a weight is computed from it"),
        ("normed.parametrizations.weight.original1", 20, "a weight is computed from it"),
        ("embedding.weight", 35, "weight of Embedding is not known as a weight matrix"),
    ]


def test_a_refused_network_is_told_what_it_has_instead():
    with pytest.raises(GraphError, match="weight of Own is not known as a weight matrix"):
        WeightGroups(Own())


@pytest.mark.parametrize("count", [3, 4, 6, 7])
def test_ties_are_looked_for_part_by_part(count, monkeypatch):
    monkeypatch.setattr(weight, "_PART", 3)
    values = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 0.0, 1.0])
    kept = largest(values, count)
    # The two above all ties, and of these the first ones.
    ties = [0, 2, 4, 5, 7][: count - 2]
    assert kept.nonzero().flatten().tolist() == sorted([1, 3, *ties])


def test_all_that_live_survive_where_they_fit_be_they_zero_or_not():
    groups = WeightGroups(nn.Sequential(nn.Linear(4, 3, bias=False)))
    norms, alive = groups.member_norms(), torch.ones(12, dtype=torch.bool)
    norms[:2], alive[5:] = 0.0, False
    assert torch.equal(groups.allowance(lambda _total: 6).survivors(norms, alive), alive)
