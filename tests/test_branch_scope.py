"""Whole branches, from the compressor's constructor to a saved folder."""

from functools import partial

import numpy as np
import pytest
import torch
import trained_on_noise
from profiles_here import shipped_as_here

import hwprune
from hwprune.branch_scope import BranchScope
from hwprune.graph.trace import trace_operators
from hwprune.runtime.patience import Patience
from hwprune.scope import Request
from hwprune.targets import Keep
from hwprune.workloads import make_model

IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
STEPS = 30
train = partial(trained_on_noise.train, steps=STEPS)


def network(seed=0):
    return make_model("resnet8", in_channels=1, image_size=8, classes=4, seed=seed)


def compressor(model, target, **options):
    return hwprune.Compressor(
        model,
        IMAGES,
        shipped_as_here(),
        target,
        total_steps=STEPS,
        granularity="branch",
        measure=False,
        **options,
    )


@pytest.mark.parametrize("penalty", ["envelope", "magnitude", "group-lasso", "half-space"])
def test_branches_leave_while_the_network_trains(penalty, tmp_path):
    model = network()
    job = compressor(model, hwprune.Keep(0.7), penalty=penalty)
    train(model, job.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)))
    result = job.finish([IMAGES])
    assert result.report.groups == {"total": 3, "kept": 2, "budget": 2}
    (gone,) = [row for row in result.plan.rows if row.width_after == 0]
    block = model.get_submodule(gone.name)
    assert not any(
        p.any() for layer in (block.conv1, block.bn1, block.conv2, block.bn2) for p in layer.parameters()
    )
    assert result.report.max_abs_difference < 1e-5
    assert result.report.predicted_us["slim"] < result.report.predicted_us["dense"]
    kinds = [operator.kind for operator in trace_operators(result.model, IMAGES)]
    assert kinds.count("conv") == 7
    hwprune.save(result, tmp_path / "slim")
    loaded = hwprune.load(tmp_path / "slim", model=network(seed=1)).eval()
    assert torch.equal(loaded(IMAGES), result.model.eval()(IMAGES))


def test_a_latency_is_met_in_prediction_and_predicted_as_built():
    model = network()
    job = compressor(model, hwprune.Speedup(1.3))
    train(model, job.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)))
    result = job.finish()
    predicted = result.report.predicted_us
    assert predicted["slim"] <= predicted["dense"] / 1.3
    assert hwprune.predict(result.model, shipped_as_here(), IMAGES).total_us == pytest.approx(
        predicted["slim"]
    )
    assert hwprune.predict(model, shipped_as_here(), IMAGES).total_us == pytest.approx(predicted["dense"])


def test_more_than_all_branches_is_out_of_reach():
    with pytest.raises(hwprune.HwpruneError, match="nothing but what must stay"):
        compressor(network(), hwprune.Speedup(50.0))


def test_every_branch_may_leave():
    model = network()
    job = compressor(
        model, hwprune.LatencyUs(compressor(network(), hwprune.Keep(1.0)).dense_predicted_us / 3)
    )
    train(model, job.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)))
    assert sum(job.members_alive.values()) <= 1


def test_a_branch_that_is_kept_stays_with_the_reason():
    model = network()
    job = compressor(model, hwprune.Keep(0.5), keep=["blocks.1.conv1"])
    train(model, job.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)))
    result = job.finish()
    rows = {row.name: row for row in result.plan.rows}
    assert (rows["blocks.1"].width_after, rows["blocks.1"].reason) == (1, "kept on request")
    with pytest.raises(hwprune.HwpruneError, match="no such branch"):
        compressor(network(), hwprune.Keep(0.5), keep=["blocks.7"])


def test_the_plan_tells_what_every_branch_would_free():
    model = network()
    scope = BranchScope(
        Request(
            model,
            model,
            IMAGES,
            shipped_as_here(),
            Keep(1.0),
            (),
            measure=False,
            notify=lambda _line: None,
            patience=Patience(pytest.fail),
        )
    )
    plan = scope.preview()
    assert [(row.name, row.width_before, row.unit) for row in plan.rows] == [
        (f"blocks.{index}", 1, "branches") for index in range(3)
    ]
    assert all(row.freed_us > 0 for row in plan.rows)
    alone = scope._predictor.latency_us(np.eye(3, dtype=np.int64))
    assert (alone < scope.dense_predicted_us).all()


def test_channels_of_a_network_without_branches_can_be_pruned_and_saved_together(tmp_path):
    model = network()
    job = compressor(model, hwprune.Keep(0.7))
    train(model, job.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)))
    shorter = job.finish().model
    second = hwprune.Compressor(
        shorter, IMAGES, shipped_as_here(), hwprune.Keep(0.5), total_steps=STEPS, measure=False
    )
    train(shorter, second.wrap(torch.optim.SGD(shorter.parameters(), lr=0.05, momentum=0.9)))
    result = second.finish([IMAGES])
    before = sum(parameter.numel() for parameter in shorter.parameters())
    assert sum(parameter.numel() for parameter in result.model.parameters()) < 0.5 * before
    hwprune.save(result, tmp_path / "slim")
    loaded = hwprune.load(tmp_path / "slim", model=network(seed=1)).eval()
    assert torch.equal(loaded(IMAGES), result.model.eval()(IMAGES))
