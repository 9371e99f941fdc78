"""Survivors fitted to what the whole network computed."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import hwprune
from hwprune.errors import InputError
from hwprune.train.reconstruction import Reconstruction
from hwprune.workloads import accuracy, load_dataset, make_model


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
            compressor.reconstruct_on(data.train_images[:256])
        result = compressor.finish()
        assert result.report.max_abs_difference < 1e-4
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
