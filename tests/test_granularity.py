"""Granularities that stay masks, from the compressor's constructor to a saved folder."""

import re
from functools import partial

import pytest
import torch
import trained_on_noise
from torch import nn

import hwprune
from hwprune.errors import ArtifactError, InputError, TrainingError
from hwprune.granularities import granularity_names
from hwprune.groups import MASKED
from hwprune.groups.block import BlockGroups

STEPS = 40
train = partial(trained_on_noise.train, steps=STEPS)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def compressor(model, target, **options):
    profile = hwprune.load_profile("x86-avx2-ort")
    inputs = torch.zeros(2, 1, 8, 8)
    return hwprune.Compressor(model, inputs, profile, target, total_steps=STEPS, measure=False, **options)


masking = partial(compressor, granularity="weight")


def test_weights_end_as_zeros_in_a_model_of_the_same_shape(tmp_path):
    model = network()
    job = compressor(model, hwprune.Keep(0.25), granularity="weight")
    train(model, job.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)))
    result = job.finish()
    total = sum(model[index].weight.numel() for index in (0, 3, 7))
    assert result.report.groups == {"total": total, "kept": total // 4, "budget": total // 4}
    assert sum(int(model[index].weight.count_nonzero()) for index in (0, 3, 7)) == total // 4
    assert result.model is not model
    assert {row.name: row.width_after for row in result.plan.rows} == {
        str(index): int(result.model[index].weight.count_nonzero()) for index in (0, 3, 7)
    }
    assert result.report.max_abs_difference == 0
    assert result.report.predicted_us == {"dense": None, "slim": None}  # no table prices it, nothing measures
    hwprune.save(result, tmp_path / "slim")
    loaded = hwprune.load(tmp_path / "slim", model=network())
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("granularity", [*MASKED, "shape"])
def test_weights_that_come_back_after_pruning_are_told(granularity):
    model = network()
    job = compressor(model, hwprune.Keep(0.5), granularity=granularity)
    train(model, job.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)))
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor + 0.1 * torch.ones_like(tensor) for name, tensor in trained.items()})
    with pytest.raises(hwprune.HwpruneError, match="were pruned are not zero"):
        job.finish()
    model.load_state_dict(trained)
    job.finish()


@pytest.mark.parametrize("granularity", MASKED)
@pytest.mark.parametrize("target", [hwprune.Speedup(2.0), hwprune.LatencyUs(10.0)])
def test_a_latency_is_refused(granularity, target):
    with pytest.raises(hwprune.HwpruneError, match="target in groups"):
        compressor(network(), target, granularity=granularity)


def test_an_unknown_granularity_lists_the_known_ones():
    with pytest.raises(hwprune.HwpruneError, match=re.escape(", ".join(granularity_names()))):
        compressor(network(), hwprune.Keep(0.5), granularity="atom")


def test_blocks_end_as_n_of_m_and_dense_layers_say_why():
    model = network()
    job = compressor(model, hwprune.Keep(0.5), granularity=partial(BlockGroups, size=8))
    train(model, job.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)))
    result = job.finish()
    convolution, linear = result.model[3].weight, result.model[7].weight
    assert (torch.count_nonzero(convolution, dim=1) == 4).all()
    assert (torch.count_nonzero(linear, dim=1) == 4).all()
    assert result.report.groups["kept"] == result.report.groups["budget"]
    assert [row.reason for row in result.plan.rows] == [None, None, "1 inputs are no multiple of 8"]


def test_a_state_of_another_target_is_refused():
    first, second = network(), network()
    state = masking(first, hwprune.Keep(0.5)).wrap(torch.optim.SGD(first.parameters(), lr=0.1)).state_dict()
    optimizer = masking(second, hwprune.Groups(5)).wrap(torch.optim.SGD(second.parameters(), lr=0.1))
    with pytest.raises(ArtifactError, match=r"another compression \(in target\): .*'groups'.*'keep'"):
        optimizer.load_state_dict(state)


def test_an_optimizer_that_leaves_out_some_of_what_can_be_pruned_is_refused():
    model = network()
    some = [tensor for name, tensor in model.named_parameters() if not name.startswith("3")]
    with pytest.raises(InputError, match=r"leaves out parameters .*, got one without 3\.weight\. "):
        masking(model, hwprune.Keep(0.5)).wrap(torch.optim.SGD(some, lr=0.1))


def test_frozen_layers_that_the_optimizer_leaves_out_are_told_of():
    model = network()
    model[0].requires_grad_(False)
    told = []
    job = masking(model, hwprune.Keep(0.5), notify=told.append)
    job.wrap(torch.optim.SGD([tensor for tensor in model.parameters() if tensor.requires_grad], lr=0.1))
    assert any("0.weight" in line and "frozen" in line for line in told)


def test_frozen_layers_can_be_kept_whole_by_name():
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    told = []
    job = masking(model, hwprune.Keep(0.5), keep=["0"], notify=told.append)
    train(model, job.wrap(torch.optim.SGD(filter(lambda p: p.requires_grad, model.parameters()), lr=0.1)))
    job.finish()
    assert torch.equal(model[0].weight, before)
    assert not any("frozen" in line for line in told)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named_in_the_end(value):
    model = network()
    job = masking(model, hwprune.Keep(0.5))
    job.proximal.settle()
    with torch.no_grad():
        model[1].bias[3] = value
    with pytest.raises(TrainingError, match=r"weights are not finite \(in 1\.bias\)"):
        job.finish()
