import numpy as np
import pytest
import torch
from torch import nn

from hwprune.errors import ArtifactError, GraphError, VerificationError
from hwprune.graph.coupling import find_axes
from hwprune.surgery.artifact import load_slim, save_slim
from hwprune.surgery.prove import prove
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.trial import zeroed
from hwprune.surgery.verify import verify
from hwprune.workloads import make_model, model_names

IMAGES = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def fresh(name, seed=0):
    return make_model(name, in_channels=1, image_size=16, classes=10, seed=seed)


def half(axes):
    return {axis.name: np.arange(axis.width) % 2 == 0 for axis in axes if axis.pinned is None}


def masked(model, axes, kept):
    """The network with the channels that go at zero."""
    for axis in axes:
        if axis.name in kept:
            zeroed(model, axis, kept[axis.name]).__enter__()
    return model


@pytest.mark.parametrize("name", model_names())
def test_built_in_networks_are_cut_exactly(name):
    model = fresh(name)
    axes = find_axes(model, IMAGES)
    kept = half(axes)
    slim = rebuild(model, axes, kept)
    before = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in slim.parameters()) < 0.35 * before
    verify(masked(model, axes, kept), slim, [IMAGES])


class Gated(nn.Module):
    """An activation with f(0) != 0 before a zero-padded convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.third = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, images):
        return self.third(torch.relu(self.second(torch.sigmoid(self.first(images)))))


def test_what_cannot_be_cut_exactly_is_pinned_with_the_reason():
    model = Gated()
    axes = find_axes(model, IMAGES)
    proven = prove(model, axes, IMAGES, {axis.name: 1 for axis in axes})
    reasons = {axis.name: axis.pinned for axis in proven.axes}
    assert "f(0) != 0" in reasons["first"]
    assert reasons["second"] is None


class Fixed(nn.Module):
    """A width written into the forward pass."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Linear(8 * 256, 3)

    def forward(self, images):
        return self.head(torch.relu(self.first(images)).view(-1, 8 * 256))


def test_a_width_in_the_code_is_pinned_by_the_trial():
    model = Fixed()
    axes = find_axes(model, IMAGES)
    proven = prove(model, axes, IMAGES, {axis.name: 1 for axis in axes})
    assert "cannot be narrowed" in {axis.name: axis.pinned for axis in proven.axes}["first"]


class Tied(nn.Module):
    """Two layers that hold one parameter."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 8), nn.Linear(16, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        return self.head(torch.relu(self.first(images)) * self.second(images)).mean((1, 2))


def test_layers_that_hold_one_parameter_are_cut_together_and_stay_tied(tmp_path):
    model = Tied()
    axes = find_axes(model, IMAGES)
    slim = rebuild(model, axes, half(axes))
    assert slim.second.weight is slim.first.weight
    assert (slim.first.out_features, slim.second.out_features) == (4, 4)
    verify(masked(model, axes, half(axes)), slim, [IMAGES])
    save_slim(tmp_path, slim, axes, half(axes), {})
    loaded = load_slim(tmp_path, Tied())
    assert loaded.second.weight is loaded.first.weight
    assert torch.equal(loaded(IMAGES), slim(IMAGES))


class Remembering(nn.Module):
    """A user's own linear layer, which repeats its sizes as numbers."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.inputs, self.outputs, self.power = inputs, outputs, 2

    def forward(self, data):
        return (data.reshape(-1, self.inputs) @ self.weight).view(*data.shape[:-1], self.outputs)


def test_sizes_that_a_layer_repeats_as_numbers_follow_its_tensors():
    model = nn.Sequential(Remembering(16, 8), nn.ReLU(), Remembering(8, 4))
    axes = find_axes(model, IMAGES)
    slim = rebuild(model, axes, half(axes))
    assert [(layer.inputs, layer.outputs, layer.power) for layer in (slim[0], slim[2])] == [
        (16, 4, 2),
        (4, 4, 2),
    ]
    verify(masked(model, axes, half(axes)), slim, [IMAGES])


def test_a_number_that_may_be_another_size_is_left_alone():
    model = nn.Sequential(nn.Linear(16, 8), Remembering(8, 8), nn.Linear(8, 3))
    axes = find_axes(model, IMAGES)
    slim = rebuild(model, axes, {"0": np.arange(8) < 4})
    assert (slim[1].inputs, slim[1].outputs) == (8, 8)
    proven = prove(model, axes, IMAGES, {axis.name: 1 for axis in axes})
    assert "cannot be narrowed" in {axis.name: axis.pinned for axis in proven.axes}["0"]


def test_whole_groups_of_a_group_norm_are_cut():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1))
    axes = find_axes(model, IMAGES)
    slim = rebuild(model, axes, half(axes))
    assert (slim[1].num_groups, slim[1].num_channels) == (2, 4)
    verify(masked(model, axes, half(axes)), slim, [IMAGES])


def test_a_wrong_cut_is_caught_and_named():
    model = fresh("lenet5")
    axes = find_axes(model, IMAGES)
    kept = half(axes)
    slim = rebuild(model, axes, kept)  # from the network that was never masked
    with pytest.raises(VerificationError, match=f"in layer {axes[1].name}"):
        verify(model, slim, [IMAGES], axes=axes, kept=kept)


@pytest.mark.parametrize(("extra", "message"), [(1, "does not fit"), (0, "every channel")])
def test_bad_masks_are_refused(extra, message):
    model = fresh("lenet5")
    axes = find_axes(model, IMAGES)
    with pytest.raises(GraphError, match=message):
        rebuild(model, axes, {axes[0].name: np.zeros(axes[0].width + extra, dtype=bool)})


@pytest.fixture
def saved(tmp_path):
    model = fresh("resnet20")
    axes = find_axes(model, IMAGES)
    slim = rebuild(model, axes, half(axes))
    save_slim(tmp_path / "slim", slim, axes, half(axes), {"torch": torch.__version__})
    return tmp_path / "slim", slim


def test_a_saved_network_loads_into_a_fresh_instance_and_trains_on(saved):
    folder, slim = saved
    loaded = load_slim(folder, fresh("resnet20", seed=1))
    slim.eval()
    loaded.eval()
    assert torch.equal(loaded(IMAGES), slim(IMAGES))
    loaded.train()
    loaded(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_another_network_is_refused(saved):
    folder, _slim = saved
    with pytest.raises(ArtifactError, match="another network"):
        load_slim(folder, fresh("lenet5"))
