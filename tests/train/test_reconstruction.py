"""Survivors fitted to what the whole network computed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hwprune
from hwprune.errors import GraphError, InputError
from hwprune.train import reconstruction
from hwprune.train.reconstruction import Reconstruction
from hwprune.workloads import accuracy, load_dataset, make_model, spread


class Residual(nn.Module):
    """A sum, a strided and a depthwise convolution, and a linear head behind pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.inner = nn.Conv2d(12, 12, 3, padding="same", padding_mode="reflect", dilation=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.down = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.norm(self.stem(images)).relu()
        inner = stem + self.depthwise(self.inner(stem).relu())
        return self.head(input=self.down(inner).relu().mean((2, 3)))


class Sequence(nn.Module):
    """A convolution in one dimension and linear layers on every place of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 10, 3, padding=1)
        self.wide = nn.Linear(10, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.wide(self.first(values).relu().transpose(1, 2)).relu())


def correlated(*shape: int) -> Tensor:
    """Inputs whose channels say much about each other, as those of trained networks do."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(shape[1], shape[1], generator=generator).cumsum(0)
    return torch.einsum("nc...,cd->nd...", torch.randn(shape, generator=generator), mixing)


def without(model: nn.Module, dead: dict[str, list[int]]) -> nn.Module:
    """A copy some of whose outputs are zero."""
    pruned = copy.deepcopy(model)
    for name, outputs in dead.items():
        layer = pruned.get_submodule(name)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter[outputs] = 0.0
    return pruned


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, list[int]], str]] = {
    "convolutions": (Residual, (64, 3, 12, 12), {"inner": [0, 3, 5, 8, 9], "down": [1, 2, 9]}, "head"),
    "a sequence": (Sequence, (64, 4, 20), {"first": [0, 2, 7], "wide": list(range(0, 24, 2))}, "head"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_survives_comes_nearer_to_the_whole_network(name: str) -> None:
    make, shape, dead, _ = NETWORKS[name]
    torch.manual_seed(0)
    model, inputs, fresh = (
        make().train(),
        correlated(*shape),
        correlated(2 * shape[0], *shape[1:])[shape[0] :],
    )
    pruned = without(model, dead)
    before = copy.deepcopy(pruned)
    errors = Reconstruction(model, inputs).fit(pruned)
    assert all(0 <= error < 0.5 for error in errors.values())
    assert pruned.training
    assert not any(module._forward_pre_hooks for module in pruned.modules())
    with torch.no_grad():
        whole, cut, fitted = (network.eval()(fresh) for network in (model, before, pruned))
    # Of what was lost on inputs that it was not fitted on, at least half is back.
    assert (fitted - whole).square().mean() < 0.5 * (cut - whole).square().mean()
    for layer, outputs in dead.items():
        for parameter in pruned.get_submodule(layer).parameters():
            assert not parameter[outputs].any()


def test_layers_in_groups_and_normalisation_are_left_alone() -> None:
    torch.manual_seed(0)
    model = Residual()
    pruned = without(model, {"inner": [0, 1]})
    errors = Reconstruction(model, correlated(32, 3, 8, 8)).fit(pruned)
    assert set(errors) == {"stem", "inner", "down", "head"}
    for name in ("norm", "depthwise"):
        for mine, other in zip(
            pruned.get_submodule(name).parameters(), model.get_submodule(name).parameters(), strict=True
        ):
            assert torch.equal(mine, other)


def test_channels_that_are_copies_of_others_are_not_missed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter[4:] = parameter[:4]
    inputs = correlated(64, 3, 10, 10)
    pruned = without(model, {"0": [4, 5, 6, 7]})
    errors = Reconstruction(model, inputs).fit(pruned)
    assert errors["2"] < 1e-5
    with torch.no_grad():
        torch.testing.assert_close(pruned(inputs), model(inputs), rtol=0.02, atol=0.02)


def test_a_network_that_lost_nothing_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model = Residual()
    same = copy.deepcopy(model)
    Reconstruction(model, correlated(32, 3, 8, 8)).fit(same)
    for mine, other in zip(same.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


class Shared(nn.Module):
    """One layer that runs twice, and two with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.once, self.tied = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied.weight = self.once.weight

    def forward(self, values: Tensor) -> Tensor:
        return self.tied(self.once(self.twice(self.twice(values))))


def test_shared_layers_are_left_alone() -> None:
    torch.manual_seed(0)
    model = Shared()
    assert Reconstruction(model, correlated(64, 6)).fit(without(model, {"twice": [0]})) == {}


def test_a_fit_to_few_samples_makes_nothing_worse() -> None:
    """As many inputs as weights could be met exactly, and would say nothing about others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 20))
    inputs, fresh = torch.randn(256, 64), torch.randn(2000, 64)
    pruned = without(model, {"0": list(range(128))})
    before = copy.deepcopy(pruned)
    error = Reconstruction(model, inputs).fit(pruned)["2"]
    with torch.no_grad():
        whole, cut, fitted = (network(fresh) for network in (model, before, pruned))
    lost, left = ((other - whole).square().mean() for other in (cut, fitted))
    assert left < lost
    # What is reported was seen on inputs that were held out, and holds for others too.
    assert error == pytest.approx(float(left / whole.square().mean()), rel=0.5)


class Scaled(nn.Linear):
    """Computes something else than its base class."""

    def forward(self, values: Tensor) -> Tensor:
        return 2 * super().forward(values)


def test_layers_that_compute_something_else_are_frozen_or_have_single_zeros_are_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), Scaled(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].requires_grad_(False)
    pruned = without(model, {"0": [0, 1]})
    with torch.no_grad():
        pruned[3].weight[2, 3] = 0.0
    errors = Reconstruction(model, correlated(200, 8)).fit(pruned)
    assert set(errors) == {"0", "4"}
    assert pruned[3].weight[2, 3] == 0


def test_mixed_precision_and_inputs_that_are_no_numbers_do_no_harm() -> None:
    torch.manual_seed(0)
    model = Residual()
    pruned = without(model, {"inner": [0, 3]})
    later = Reconstruction(model, 2 + correlated(32, 3, 12, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert later.fit(pruned)
    broken = without(model, {"inner": [0, 3]})
    before = copy.deepcopy(broken.state_dict())
    Reconstruction(model, correlated(32, 3, 12, 12) * torch.nan).fit(broken)
    for name, tensor in broken.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_of_large_maps_fewer_inputs_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "MOST_BYTES", 10 * 12 * 12 * 12 * 4)
    found = Reconstruction(Residual(), correlated(32, 3, 12, 12))._inputs
    assert isinstance(found, Tensor)
    assert 8 <= len(found) <= 10


def test_inputs_of_another_size_are_told_at_once() -> None:
    with pytest.raises(GraphError, match="survivors are to be fitted on"):
        Reconstruction(nn.Sequential(nn.Linear(8, 8)), torch.zeros(4, 5))


def test_the_compressor_gives_back_what_a_trained_network_computed() -> None:
    data = load_dataset("digits")
    model = make_model("resnet8", in_channels=1, image_size=8, classes=10, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for start in range(0, 1280, 64):
        images, labels = data.train_images[start : start + 64], data.train_labels[start : start + 64]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    scores = {}
    for fitted in (False, True):
        network, said = copy.deepcopy(model), list[str]()
        compressor = hwprune.Compressor(
            network,
            data.test_images[:2],
            hwprune.load_profile("x86-avx2-ort"),
            hwprune.Keep(0.5),
            total_steps=1,
            measure=False,
            notify=said.append,
        )
        if fitted:
            compressor.reconstruct_on(spread(data.train_images, 256))
        result = compressor.finish()
        assert result.report.max_abs_difference < 1e-4
        with pytest.raises(InputError, match="whole"):
            compressor.reconstruct_on(data.train_images[:4])  # too late
        scores[fitted] = accuracy(result.model, data.test_images, data.test_labels)
        assert any(f"fitted {layers} layers" in line for line in said) == fitted
    assert scores[True] > scores[False] + 0.1


def test_single_weights_are_not_fitted() -> None:
    compressor = hwprune.Compressor(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)),
        torch.zeros(2, 8),
        hwprune.load_profile("x86-avx2-ort"),
        hwprune.Keep(0.5),
        total_steps=1,
        granularity="weight",
        measure=False,
    )
    with pytest.raises(InputError, match="whole inputs"):
        compressor.reconstruct_on(torch.zeros(4, 8))


def test_a_training_that_was_interrupted_before_the_fit_goes_on_to_the_same_weights() -> None:
    data = load_dataset("digits").first(128)
    trained = make_model("lenet5", in_channels=1, image_size=8, classes=10, seed=0)

    def begun() -> tuple[nn.Module, torch.optim.Optimizer, hwprune.Compressor]:
        network = copy.deepcopy(trained)
        compressor = hwprune.Compressor(
            network,
            data.test_images[:2],
            hwprune.load_profile("x86-avx2-ort"),
            hwprune.Keep(0.5),
            total_steps=12,
            measure=False,
        )
        compressor.reconstruct_on(data.train_images)
        optimizer = compressor.wrap(torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9))
        return network, optimizer, compressor

    def steps(network: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(data.train_images), data.train_labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    whole, optimizer, compressor = begun()
    steps(whole, optimizer, 3)
    assert not compressor.proximal.settled
    state = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    steps(whole, optimizer, 9)
    assert compressor.proximal.settled

    resumed, optimizer, _ = begun()
    resumed.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    steps(resumed, optimizer, 9)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
