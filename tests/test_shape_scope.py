"""Filter shapes from the compressor's constructor to a saved folder, and the choice of forms."""

import copy
import dataclasses
import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from trained_on_noise import train

import hwprune
from hwprune import shape_choice, shape_scope
from hwprune.cli import main
from hwprune.runtime.bench import THIS_MACHINE
from hwprune.runtime.environment import local_profile
from hwprune.shape_choice import choose_forms
from hwprune.surgery.forms import living_positions
from hwprune.train.loop import Recipe
from hwprune.variants import Grid

PROFILE = "x86-avx2-ort"
STEPS = 40


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def trained(measure, keep=0.4):
    model = network()
    job = hwprune.Compressor(
        model,
        torch.zeros(2, 1, 8, 8),
        hwprune.load_profile(PROFILE),
        hwprune.Keep(keep),
        total_steps=STEPS,
        granularity="shape",
        measure=measure,
    )
    optimizer = job.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    images = train(model, optimizer, STEPS)
    return model, job.finish([images])


def test_positions_become_zeros_and_the_rows_tell_what_became_of_each_layer(tmp_path):
    model, result = trained(measure=False)
    assert result.report.groups == {"total": 81, "kept": 32, "budget": 32}
    alive = {index: living_positions(model[index]).size for index in (0, 3)}
    assert sum(alive.values()) == 32
    rows = {row.name: row for row in result.plan.rows}
    assert {name: row.width_after for name, row in rows.items()} == {"0": alive[0], "3": alive[3], "8": 32}
    assert all(rows[name].form for name in ("0", "3"))
    assert "no filter shapes" in rows["8"].reason
    hwprune.save(result, tmp_path / "slim")
    loaded = hwprune.load(tmp_path / "slim", model=network(seed=1))
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded.eval()(images), result.model.eval()(images))


def test_what_is_faster_is_built_saved_and_counted(tmp_path, monkeypatch):
    def pretend(networks, *_arguments):
        prices = {"dense": 9.0, "cropped": 8.0, "lowered": 4.0, "every form": 5.0}
        return {name: prices[name] for name in networks}

    monkeypatch.setattr(shape_choice, "time_networks", pretend)
    model, result = trained(measure=True)
    # Of the nine positions of the first convolution so many live that it is not worth trying.
    assert {(form.module, form.kind) for form in result.forms} == {("3", "lowered")}
    assert [type(result.model[index]).__name__ for index in (0, 3)] == ["Conv2d", "LoweredConvolution"]
    assert type(model[3]) is nn.Conv2d
    assert result.report.max_abs_difference < 1e-5
    predicted = result.report.predicted_us
    assert predicted["slim"] == pytest.approx(max(predicted["dense"] - 5.0, 0.0))
    assert "dense 9.0 us" in result.plan.rows[1].form
    hwprune.save(result, tmp_path)
    assert {item["form"] for item in json.loads((tmp_path / "structure.json").read_text())["reshaped"]} == {
        "lowered"
    }
    loaded = hwprune.load(tmp_path, model=network(seed=1))
    assert str(loaded) == str(result.model)


def masked():
    """The middle row of the first convolution lives, and some positions of the second."""
    model = network()
    with torch.no_grad():
        model[0].weight[:, :, [0, 2]] = 0
        model[3].weight.mul_(torch.rand(8, 3, 3) < 0.5)
    return model


def choose(model, medians, monkeypatch, measure=True):
    def pretend(networks, *_arguments):
        return {name: medians[name] for name in networks}

    monkeypatch.setattr(shape_choice, "time_networks", pretend)
    profile = hwprune.load_profile(PROFILE)
    choices = choose_forms(
        model, ["0", "3"], torch.zeros(1, 1, 8, 8), profile, THIS_MACHINE if measure else None
    )
    return {name: choice.form and choice.form.kind for name, choice in choices.items()}, choices


@pytest.mark.parametrize(
    ("medians", "kinds"),
    [
        ({"dense": 10, "cropped": 5, "lowered": 5, "every form": 4}, {"0": "cropped", "3": "lowered"}),
        ({"dense": 10, "cropped": 5, "lowered": 9.9, "every form": 5}, {"0": "cropped", "3": None}),
        ({"dense": 10, "cropped": 11, "lowered": 12, "every form": 5}, {"0": None, "3": None}),
        # Each on its own is faster; the network is not, or only with the crops.
        ({"dense": 10, "cropped": 9, "lowered": 5, "every form": 9}, {"0": "cropped", "3": None}),
        ({"dense": 10, "cropped": 9, "lowered": 5, "every form": 11}, {"0": "cropped", "3": None}),
    ],
)
def test_a_form_is_taken_only_where_it_is_faster(medians, kinds, monkeypatch):
    found, choices = choose(masked(), medians, monkeypatch)
    assert found == kinds
    assert all(f"dense {medians['dense']:.1f} us" in str(choice) for choice in choices.values())


def test_nothing_is_lowered_that_was_not_measured(monkeypatch):
    found, choices = choose(masked(), {}, monkeypatch, measure=False)
    assert found == {"0": "cropped", "3": None}
    assert str(choices["3"]) == "dense: nothing was measured"


def test_reasons_are_told_for_layers_that_are_not_timed(monkeypatch):
    model = masked()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[3].weight.fill_(1)
        model[3].weight[:, 0, 0, 0] = 0
    _found, choices = choose(model, {}, monkeypatch)
    assert str(choices["0"]) == "dense: every position lives"
    assert str(choices["3"]) == "dense: 99% of the positions live, too many to lower it"


@pytest.mark.slow
def test_the_network_that_forms_are_chosen_for_is_not_touched():
    model = masked()
    before = copy.deepcopy(model.state_dict())
    profile = hwprune.load_profile(PROFILE)
    choices = choose_forms(model, ["0", "3"], torch.zeros(1, 1, 8, 8), profile)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {name: set(choice.medians_us) for name, choice in choices.items()} == {
        "0": {"dense", "cropped"},
        "3": {"dense", "lowered"},
    }
    assert all(median > 0 for choice in choices.values() for median in choice.medians_us.values())


@pytest.mark.parametrize(
    ("options", "granularity"),
    [
        (["--device", "x86-lowered-ort"], "shape"),
        (["--device", PROFILE], "channel"),
        (["--device", "x86-lowered-ort", "--granularity", "weight"], "weight"),
    ],
)
def test_the_rules_of_the_device_say_what_a_group_is(options, granularity, monkeypatch, tmp_path):
    asked = []
    module = importlib.import_module("hwprune.cli.prune")
    monkeypatch.setattr(module, "compress", lambda settings, *_arguments, **_options: asked.append(settings))
    result = CliRunner().invoke(main, ["prune", *options, "--keep", "0.5", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert [settings.granularity for settings in asked] == [granularity]


def test_variants_are_pruned_by_the_rules_of_their_devices():
    devices = {name: hwprune.load_profile(name) for name in ("x86-lowered-ort", PROFILE)}
    grid = Grid(["lenet5"], "digits", devices, [hwprune.Keep(0.5)], Recipe(1, 32, 0.1))
    assert [variant.settings.granularity for variant in grid.variants()] == ["shape", "channel"]


def test_the_stand_in_is_never_taken_for_the_device_of_this_machine():
    assert local_profile().granularity == "channel"


class Reading(nn.Module):
    """Its own code reads the size of the kernel."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, images):
        return self.conv(images) * self.conv.kernel_size[0]


class Naming(Reading):
    """Its own code calls the layer by keyword."""

    def forward(self, images):
        return self.conv(input=images)


@pytest.mark.parametrize(
    ("network", "living", "failure"),
    [
        (Reading, [3, 4, 5], "outputs differ by"),
        (Reading, [0, 4, 8], "AttributeError"),
        (Naming, [0, 4, 8], "TypeError"),
    ],
)
def test_a_layer_of_which_more_is_used_than_its_output_stays(network, living, failure, monkeypatch):
    prices = {"dense": 9.0, "cropped": 5.0, "lowered": 4.0}
    monkeypatch.setattr(
        shape_choice, "time_networks", lambda networks, *_arguments: {name: prices[name] for name in networks}
    )
    torch.manual_seed(0)
    model = network()
    with torch.no_grad():
        model.conv.weight.flatten(1)[:, [place for place in range(9) if place not in living]] = 0
    choices = choose_forms(model, ["conv"], torch.randn(1, 1, 8, 8), hwprune.load_profile(PROFILE))
    assert choices["conv"].form is None
    assert f"reads more of it than its output: {failure}" in choices["conv"].reason


def test_nothing_is_timed_where_no_unread_channel_may_leave(monkeypatch):
    def pinned(_model, axes, *_arguments):
        return SimpleNamespace(axes=[dataclasses.replace(axis, pinned="a trial") for axis in axes])

    timed = []

    def pretend(networks, *_arguments):
        timed.append(set(networks))
        return dict.fromkeys(networks, 1.0)

    monkeypatch.setattr(shape_scope, "prove", pinned)
    monkeypatch.setattr(shape_scope, "time_networks", pretend)
    monkeypatch.setattr(shape_choice, "time_networks", pretend)
    unread = lambda _model, axes, _aligns: {  # noqa: E731
        axis.name: np.arange(axis.width) > 0 for axis in axes if axis.name == "0"
    }
    monkeypatch.setattr(shape_scope, "unread_channels", unread)
    trained(measure=True)
    assert {"before", "after"} not in timed
