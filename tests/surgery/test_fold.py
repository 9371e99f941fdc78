import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import hwprune
from hwprune.errors import ArtifactError
from hwprune.graph.coupling import find_axes
from hwprune.surgery.artifact import load_slim, save_slim
from hwprune.surgery.fold import fold_constants
from hwprune.surgery.prove import prove
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.trial import zeroed
from hwprune.surgery.verify import verify

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

#: Activations with f(0) != 0, and some with f(0) == 0.
CONSTANT = {
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "hardsigmoid": nn.Hardsigmoid,
    "logsigmoid": nn.LogSigmoid,
    "threshold": lambda: nn.Threshold(0.5, 2.0),
    "hardtanh": lambda: nn.Hardtanh(0.25, 1.0),
}
ZERO = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "mish": nn.Mish, "elu": nn.ELU}


class Applied(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, features):
        return self.function(features)


CONSTANT |= {
    "exp": lambda: Applied(lambda features: torch.exp(-features.abs())),
    "cos": lambda: Applied(torch.cos),
}


def half(axes):
    return {axis.name: np.arange(axis.width) % 2 == 0 for axis in axes if axis.pinned is None}


def cut_in_half(model, inputs=IMAGES):
    """Every axis that may shrink cut in half, with folding: masked, slim, axes, kept, proof and biases."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.bias)
    axes = find_axes(model, inputs)
    proven = prove(model, axes, inputs, {axis.name: 1 for axis in axes}, fold=True)
    kept = half(proven.axes)
    for axis in proven.axes:
        if axis.name in kept:
            zeroed(model, axis, kept[axis.name]).__enter__()
    slim = rebuild(model, proven.axes, kept)
    biases = fold_constants(model, slim, proven.axes, kept, inputs)
    return model, slim, proven, kept, biases


def chain(activation, *, bias=True, padding=0):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), activation(),
        nn.Conv2d(6, 8, 3, padding=padding, bias=bias), nn.BatchNorm2d(8), activation(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6), activation(), nn.Linear(6, 4, bias=bias),
    )  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CONSTANT)
def test_constants_go_into_the_next_bias(name, bias):
    masked, slim, proven, kept, biases = cut_in_half(chain(CONSTANT[name], bias=bias))
    assert kept.keys() == {"0", "3", "8"}
    assert proven.folded == {"0": ("3",), "3": ("8",), "8": ("10",)}
    assert biases == ("3", "8", "10")
    assert slim[3].weight.shape == (4, 3, 3, 3)
    # In evaluation mode, and with the batch norm behind the bias taking it out again.
    verify(masked, slim, [IMAGES, IMAGES * 3])


@pytest.mark.parametrize("name", ZERO)
def test_nothing_is_folded_where_zero_stays_zero(name):
    masked, slim, proven, _, biases = cut_in_half(chain(ZERO[name], bias=False))
    assert (proven.folded, biases) == ({}, ())
    assert slim[3].bias is None
    verify(masked, slim, [IMAGES])


@pytest.mark.parametrize("name", CONSTANT)
def test_a_padded_convolution_keeps_its_channels_with_the_reason(name):
    masked, slim, proven, kept, _ = cut_in_half(chain(CONSTANT[name], padding=1))
    reasons = {axis.name: axis.pinned for axis in proven.axes}
    assert "f(0) != 0" in reasons["0"]
    assert kept.keys() == {"3", "8"}
    verify(masked, slim, [IMAGES])


def test_without_folding_nothing_changes():
    model = chain(nn.Sigmoid)
    axes = find_axes(model, IMAGES)
    proven = prove(model, axes, IMAGES, {axis.name: 1 for axis in axes})
    assert all("f(0) != 0" in axis.pinned for axis in proven.axes if axis.name in ("0", "3", "8"))


class Gated(nn.Module):
    """Behind the gate a dead channel is the same everywhere in an image, and not the same in another."""

    def __init__(self):
        super().__init__()
        self.first, self.gate, self.last = nn.Conv2d(3, 6, 1), nn.Linear(3, 1), nn.Conv2d(6, 4, 1)

    def forward(self, images):
        gate = torch.sigmoid(self.gate(images.mean((2, 3))))[:, :, None, None]
        return self.last(torch.sigmoid(self.first(images)) * gate)


@pytest.mark.parametrize("inputs", [IMAGES[:1], torch.zeros(2, 3, 8, 8)], ids=["one image", "zeros"])
def test_what_depends_on_the_data_is_no_constant(inputs):
    torch.manual_seed(0)
    masked, slim, proven, _, biases = cut_in_half(Gated(), inputs)
    assert "f(0) != 0" in next(axis.pinned for axis in proven.axes if axis.name == "first")
    assert biases == ()
    verify(masked, slim, [inputs, IMAGES, 3 * IMAGES])


class Tokens(nn.Module):
    """The same with integers at the entrance."""

    def __init__(self):
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(9, 5), nn.Linear(5, 6), nn.Linear(6, 4)

    def forward(self, tokens):
        return self.last(torch.sigmoid(self.first(self.table(tokens))) * tokens[:, :1, None].sigmoid())


def test_what_depends_on_integers_is_no_constant():
    torch.manual_seed(0)
    tokens = torch.arange(7)[None]
    masked, slim, _, _, biases = cut_in_half(Tokens(), {"tokens": tokens})
    assert biases == ()
    verify(masked, slim, [{"tokens": tokens}, {"tokens": tokens.flip(1)}])


class Summed(nn.Module):
    """A constant that grows with the map."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Linear(6, 4)

    def forward(self, images):
        return self.last(torch.sigmoid(self.first(images)).sum((2, 3)))


def test_what_depends_on_the_size_of_the_map_is_no_constant():
    torch.manual_seed(0)
    masked, slim, _, _, biases = cut_in_half(Summed())
    assert biases == ()
    verify(masked, slim, [IMAGES, torch.randn(2, 3, 11, 11)])


class Plain(nn.Module):
    """Layers that are called by keyword, and on one row without a batch."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, rows):
        return self.last(torch.sigmoid(self.second(input=torch.sigmoid(self.first(rows)))).mean(0))


def test_layers_called_by_keyword_fold_and_those_without_a_batch_do_not():
    torch.manual_seed(0)
    rows = torch.randn(3, 5)
    masked, slim, proven, _, biases = cut_in_half(Plain(), rows)
    assert proven.folded == {"first": ("second",)}
    assert biases == ("second",)
    verify(masked, slim, [rows, 2 * rows])


def test_a_channel_that_is_no_number_is_not_folded():
    torch.manual_seed(0)
    activation = Applied(lambda features: torch.where(features == 0, torch.nan, features))
    model = nn.Sequential(nn.Linear(5, 6), activation, nn.Linear(6, 4))
    with torch.no_grad():
        model[0].weight[:3] = model[0].bias[:3] = 0
    axis = next(axis for axis in find_axes(model, torch.randn(3, 5)) if axis.name == "0")
    kept = {"0": np.arange(6) >= 3}
    slim = rebuild(model, [axis], kept)
    assert fold_constants(model, slim, [axis], kept, torch.randn(3, 5)) == ()


LAYERS = st.lists(
    st.tuples(
        st.sampled_from(sorted(CONSTANT | ZERO)),
        st.sampled_from(["valid", "padded", "point", "depthwise", "branches"]),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


class Branches(nn.Module):
    """Two layers that read the same channels, one of them twice as often."""

    def __init__(self, channels, bias):
        super().__init__()
        self.left = nn.Conv2d(channels, 6, 1, bias=bias)
        self.right = nn.Conv2d(channels, 6, 1, bias=not bias)

    def forward(self, features):
        return torch.cat([self.left(features), self.right(features) + self.right(features)], 1)


def build(layers):
    modules, channels = [nn.Conv2d(3, 6, 1)], 6
    for name, kind, bias, norm in layers:
        modules.append((CONSTANT | ZERO)[name]())
        match kind:
            case "valid":
                modules.append(nn.Conv2d(channels, 8, 2, bias=bias))
                channels = 8
            case "padded":
                modules.append(nn.Conv2d(channels, 6, 3, padding=1, bias=bias))
                channels = 6
            case "point":
                modules.append(nn.Conv2d(channels, 10, 1, bias=bias))
                channels = 10
            case "depthwise":
                modules.append(nn.Conv2d(channels, channels, 2, groups=channels, bias=bias))
            case "branches":
                modules.append(Branches(channels, bias))
                channels = 12
        if norm:
            modules.append(nn.BatchNorm2d(channels))
    return nn.Sequential(*modules, nn.Flatten(), nn.LazyLinear(3))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(layers=LAYERS)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_random_networks_are_folded_exactly_or_kept(layers):
    torch.manual_seed(0)
    model = build(layers).eval()
    model(IMAGES)
    masked, slim, _, _, _ = cut_in_half(model)
    verify(masked, slim, [IMAGES, 2 * IMAGES])


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_network_loads_into_a_fresh_one(bias, tmp_path):
    _, slim, proven, kept, biases = cut_in_half(chain(nn.Sigmoid, bias=bias))
    save_slim(tmp_path, slim, proven.axes, kept, {}, biases=biases)
    loaded = load_slim(tmp_path, chain(nn.Sigmoid, bias=bias)).eval()
    assert torch.equal(loaded(IMAGES), slim.eval()(IMAGES))
    assert isinstance(loaded[10].bias, nn.Parameter)
    loaded.train()(IMAGES).square().mean().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


@pytest.mark.parametrize("names", [["77"], ["1"], [""], ["0", "3", "7"]])
def test_a_bias_for_what_takes_none_is_refused(names, tmp_path):
    model = chain(nn.Sigmoid, bias=False)
    save_slim(tmp_path, model, (), {}, {})
    path = tmp_path / "structure.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"biases": names}))
    with pytest.raises(ArtifactError, match="another network"):
        load_slim(tmp_path, chain(nn.Sigmoid, bias=False))


def test_the_compressor_folds_and_says_so(tmp_path):
    model = chain(nn.Sigmoid, bias=False)
    profile = hwprune.load_profile("x86-avx2-ort")
    job = hwprune.Compressor(model, IMAGES, profile, hwprune.Keep(0.7), total_steps=20, measure=False)
    optimizer = job.wrap(torch.optim.SGD(model.parameters(), lr=0.05))
    for _ in range(20):
        optimizer.zero_grad()
        model(IMAGES).square().mean().backward()
        optimizer.step()
    result = job.finish()
    rows = {row["name"]: row for row in result.plan.as_records()}
    assert rows["3"]["folded_into"] == ["8"]
    assert "folded into 8" in str(result.plan)
    hwprune.save(result, tmp_path)
    loaded = hwprune.load(tmp_path, chain(nn.Sigmoid, bias=False)).eval()
    assert torch.equal(loaded(IMAGES), result.model.eval()(IMAGES))
