"""Cropped and lowered convolutions: the same function, in every shape, trained, exported and loaded."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune.delivery import verify_exported
from hwprune.errors import ArtifactError
from hwprune.surgery.artifact import load_slim, save_slim
from hwprune.surgery.forms import Form, living_positions, possible_forms, reshape, shape_in_form, why_as_it_is
from hwprune.surgery.outputs import compare
from hwprune.surgery.verify import TOLERANCE, verify

IMAGES = torch.randn(2, 6, 11, 9, generator=torch.Generator().manual_seed(0))
KINDS = ("cropped", "lowered")
CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "uneven": {"kernel_size": (3, 5), "padding": (2, 0), "stride": (1, 2), "bias": False},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "same": {"kernel_size": (4, 3), "padding": "same", "dilation": (2, 1)},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "pointwise": {"kernel_size": 1},
    "pointwise strided": {"kernel_size": 1, "stride": 2},
}
#: Living positions (channels, rows, columns) of a kernel.
PATTERNS = {
    "middle row": lambda living: living[:, living.shape[1] // 2, :],
    "first column": lambda living: living[:, :, 0],
    "last place": lambda living: living[:, -1, -1],
    "some channels": lambda living: living[1:4],
    "one position": lambda living: living[3, 0, :1],
    "nothing": lambda living: living[:0],
}


def convolution(options, seed=0):
    torch.manual_seed(seed)
    return nn.Conv2d(6, 5, **options)


def masked(layer, pattern):
    """Sets everything outside of a pattern to zero; a random half for none."""
    living = torch.zeros(layer.weight.shape[1:], dtype=torch.bool)
    if pattern == "scattered":
        living = torch.rand(living.shape, generator=torch.Generator().manual_seed(1)) < 0.4
        living[0, 0, 0] = True
    else:
        PATTERNS[pattern](living).fill_(True)
    with torch.no_grad():
        layer.weight.mul_(living)
    return layer


def changed(layer, kind):
    form = Form("0", kind, tuple(living_positions(layer).tolist()))
    model = nn.Sequential(copy.deepcopy(layer))
    reshape(model, [form])
    return model[0], form


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", [*PATTERNS, "scattered"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_smaller_form_computes_the_same_on_maps_of_any_size(name, pattern, kind):
    layer = masked(convolution(CONVOLUTIONS[name]), pattern)
    smaller, form = changed(layer, kind)
    positions = np.array(form.positions)
    assert tuple(smaller.weight.shape) == shape_in_form(kind, tuple(layer.weight.shape), positions)
    assert smaller.weight.numel() <= layer.weight.numel()
    for images in (IMAGES, IMAGES[:1, :, :7, :8]):
        with torch.no_grad():
            assert compare([layer(images)], [smaller(images)]).relative <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_living_weights_are_those_of_the_convolution(kind):
    layer = masked(convolution(CONVOLUTIONS["padded"]), "middle row")
    smaller, _form = changed(layer, kind)
    for each in (layer, smaller):
        each(IMAGES).square().sum().backward()
    torch.testing.assert_close(smaller.bias.grad, layer.bias.grad)
    expected = layer.weight.grad[:, :, 1, :]
    torch.testing.assert_close(smaller.weight.grad.flatten(), expected.flatten())


def test_an_even_crop_is_a_plain_convolution_and_an_uneven_one_pads():
    even, _form = changed(masked(convolution(CONVOLUTIONS["padded"]), "middle row"), "cropped")
    assert (even.kernel_size, even.padding, even.pads, even.channels) == ((1, 3), (0, 1), None, None)
    uneven, _form = changed(masked(convolution(CONVOLUTIONS["padded"]), "first column"), "cropped")
    assert (uneven.kernel_size, uneven.padding, uneven.pads) == ((3, 1), (0, 0), (1, -1, 1, 1))


def test_forms_are_offered_only_where_they_are_smaller():
    layer = convolution(CONVOLUTIONS["padded"])
    assert possible_forms("0", layer) == ()
    assert [form.kind for form in possible_forms("0", masked(layer, "middle row"))] == ["cropped"]
    with torch.no_grad():
        layer.weight[:, 2, 1, 0] = 0
    assert [form.kind for form in possible_forms("0", layer)] == ["cropped", "lowered"]
    scattered = masked(convolution(CONVOLUTIONS["padded"]), "scattered")
    assert [form.kind for form in possible_forms("0", scattered)] == ["lowered"]


class Special(nn.Conv2d):
    pass


def test_layers_that_may_compute_something_else_stay():
    shared = nn.Conv2d(3, 3, 1)
    model = nn.ModuleDict(
        {
            "plain": nn.Conv2d(3, 3, 1),
            "special": Special(3, 3, 1),
            "grouped": nn.Conv2d(3, 3, 1, groups=3),
            "reflecting": nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
            "hooked": nn.Conv2d(3, 3, 1),
            "shared": shared,
            "again": shared,
        }
    )
    model["hooked"].register_forward_hook(lambda *_arguments: None)
    reasons = {name: why_as_it_is(model, name) for name in model}
    assert reasons.pop("plain") is None
    assert reasons == {
        "special": "a Special, which may compute something else than a Conv2d",
        "grouped": "its filters read 3 different groups of inputs",
        "reflecting": "it pads with reflect",
        "hooked": "it has hooks",
        "shared": "its weight is shared",
        "again": "its weight is shared",
    }
    assert why_as_it_is(shared, "") == "the network is nothing but this layer"


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


@pytest.fixture
def reshaped():
    """A masked network, and the same with a lowered, an evenly and an unevenly cropped convolution."""
    model = network()
    masked(model[0], "scattered")
    masked(model[3], "middle row")
    masked(model[6], "first column")
    with torch.no_grad():
        model[6].weight[:, :3] = 0
    forms = [
        Form(str(index), kind, tuple(living_positions(model[index]).tolist()))
        for index, kind in ((0, "lowered"), (3, "cropped"), (6, "cropped"))
    ]
    slim = copy.deepcopy(model)
    reshape(slim, forms)
    return model, slim, forms


def test_networks_agree_in_evaluation_with_batch_statistics_and_in_the_runtime(reshaped, tmp_path):
    model, slim, _forms = reshaped
    assert verify(model, slim, [IMAGES, IMAGES[:, :, 1:, 2:]]).relative <= TOLERANCE
    exported = hwprune.export(slim, tmp_path / "slim.onnx", IMAGES)
    assert exported.dynamic_batch, exported.note
    profile = hwprune.load_profile("x86-avx2-ort")
    for count in (1, 2, 5):
        images = IMAGES.repeat(3, 1, 1, 1)[:count]
        assert verify_exported(model.eval(), exported.path, images, profile) < 1e-5


def test_a_saved_network_loads_into_a_fresh_instance_and_trains_on(reshaped, tmp_path):
    _model, slim, forms = reshaped
    save_slim(tmp_path, slim, (), {}, {}, forms=forms)
    loaded = load_slim(tmp_path, network(seed=1))
    assert torch.equal(loaded.eval()(IMAGES), slim.eval()(IMAGES))
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    before = loaded[0].weight.detach().clone()
    loaded.train()(IMAGES).square().sum().backward()
    optimizer.step()
    assert not torch.equal(loaded[0].weight, before)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"module": "1"}, "cannot be changed.*BatchNorm2d"),
        ({"module": "nothing"}, "cannot be changed.*no such layer"),
        ({"module": "3"}, "cannot be changed.*twice"),
        ({"positions": [0, 54]}, "ascending"),
        ({"positions": [3, 3]}, "ascending"),
        ({"positions": []}, "malformed"),
        ({"form": "folded"}, "malformed"),
        ({"form": "cropped"}, "do not fit"),
        ({"positions": [0, 1]}, "do not fit"),
    ],
)
def test_a_tampered_form_is_refused_and_the_instance_stays(reshaped, tmp_path, entry, message):
    _model, slim, forms = reshaped
    save_slim(tmp_path, slim, (), {}, {}, forms=forms)
    structure = tmp_path / "structure.json"
    content = json.loads(structure.read_text())
    content["reshaped"][0].update(entry)
    structure.write_text(json.dumps(content))
    fresh = network(seed=1)
    before = str(fresh)
    with pytest.raises(ArtifactError, match=message):
        load_slim(tmp_path, fresh)
    assert str(fresh) == before


def test_a_weight_that_another_layer_has_by_another_name_is_shared():
    model = nn.Sequential(convolution({"kernel_size": 3}), nn.Module())
    assert why_as_it_is(model, "0") is None
    model[1].register_parameter("kernel", model[0].weight)
    assert why_as_it_is(model, "0") == "its weight is shared"
