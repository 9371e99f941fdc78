"""Channels and residual branches in one budget, from the compressor's constructor to a saved folder."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
import torch
import trained_on_noise
from profiles_here import shipped_as_here
from torch import nn

import hwprune
from hwprune.depth_scope import DepthScope
from hwprune.graph.trace import trace_operators
from hwprune.groups.costs import CountBudget, emptied
from hwprune.runtime.patience import Patience
from hwprune.scope import Request
from hwprune.surgery.stand_in import StandIn
from hwprune.targets import Keep
from hwprune.train.schedule import StrengthSchedule
from hwprune.workloads import make_model

IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
STEPS = 30
train = partial(trained_on_noise.train, steps=STEPS)


class Mixed(nn.Module):
    """Blocks with and without a stride, with a gate, with a depthwise middle, and one without channels."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.first = self._block(16, 32, 16)
        self.inverted = nn.Sequential(
            nn.Conv2d(16, 48, 1, bias=False),
            nn.BatchNorm2d(48),
            nn.ReLU6(),
            nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False),
            nn.BatchNorm2d(48),
            nn.ReLU6(),
            nn.Conv2d(48, 16, 1, bias=False),
            nn.BatchNorm2d(16),
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 1), nn.Sigmoid()
        )
        self.inner = self._block(16, 16, 16)
        self.down = self._block(16, 32, 32, stride=2)
        self.shortcut = nn.Conv2d(16, 32, 1, stride=2)
        self.single = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 4)

    @staticmethod
    def _block(width: int, inside: int, out: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(width, inside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(inside),
            nn.ReLU(),
            nn.Conv2d(inside, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (x + self.first(x)).relu()
        x = x + self.inverted(x)
        inner = self.inner(x)
        x = (x + inner * self.gate(inner)).relu()
        x = (self.shortcut(x) + self.down(x)).relu()
        x = x + self.single(x)
        return self.head(x.mean((2, 3)))


def compressor(model, target, **options):
    return hwprune.Compressor(
        model, IMAGES, shipped_as_here(), target,
        total_steps=STEPS, granularity="channel+branch", measure=False, **options,
    )  # fmt: skip


def scope_of(model, target=None, **options):
    return DepthScope(
        Request(
            model, model, IMAGES, shipped_as_here(), target or Keep(1.0), options.pop("keep", ()),
            measure=False, notify=lambda _line: None, patience=Patience(pytest.fail),
        )
    )  # fmt: skip


def test_what_may_leave_with_its_channels_and_what_may_not():
    scope = scope_of(Mixed())
    rows = {row.name: row for row in scope.preview().rows if row.unit == "branches"}
    leaves = {name for name, row in rows.items() if row.reason is None}
    assert {"first", "inverted", "down"} <= leaves
    assert not any(name.startswith("single") for name in leaves)
    assert any("by themselves" in (row.reason or "") for row in rows.values())
    places = {axis.name: index for index, axis in enumerate(scope.groups.axes)}
    fewest = {name: int(scope.groups.fewest[index]) for name, index in places.items()}
    assert (fewest["stem"], fewest["first.0"], fewest["inverted.0"]) == (1, 0, 0)


def resnet8(seed=0):
    return make_model("resnet8", in_channels=1, image_size=8, classes=4, seed=seed)


@pytest.mark.parametrize("make", [Mixed, resnet8])
@pytest.mark.parametrize("seed", range(3))
def test_random_widths_compute_what_the_masked_network_does(make, seed):
    """And take what is predicted for them, where there are rows for the network."""
    scope = scope_of(make(seed))
    groups, generator = scope.groups, np.random.default_rng(seed)
    aligns = np.array(groups.aligns)
    everybody = torch.ones(groups.member_count, dtype=torch.bool)
    for _ in range(6):
        counts = generator.integers(groups.fewest, -(-groups.widths // aligns) + 1)
        counts[generator.random(counts.size) < 0.2] = 0
        widths = np.minimum(np.maximum(counts, groups.fewest) * aligns, groups.widths)
        masked = make(seed)
        for module in masked.modules():  # statistics that hide nothing
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
                nn.init.normal_(module.bias)
        groups.rebind(masked)
        alive = groups.strongest(groups.member_norms(), everybody, widths)
        assert np.array_equal(groups.widths_of(alive), emptied(widths, groups.together))
        with torch.no_grad():
            groups.scale_(alive)
        finished = scope.finish(masked, alive, [IMAGES])
        assert finished.max_abs_difference < 1e-4
        absent = {name for name, module in finished.model.named_modules() if isinstance(module, StandIn)}
        gone = [row.name for row in finished.plan.rows if row.unit == "branches" and not row.width_after]
        bypasses = {bypass.branch.name: bypass for bypass, _tail in scope._tails}
        assert absent == {name for branch in gone for name in bypasses[branch].absences}
        if make is resnet8:
            predicted = hwprune.predict(finished.model, shipped_as_here(), IMAGES).total_us
            assert float(scope._predictor.latency_us(widths)) == pytest.approx(predicted)


@pytest.mark.parametrize("penalty", ["envelope", "magnitude", "group-lasso"])
def test_channels_and_branches_leave_together_while_the_network_trains(penalty, tmp_path):
    model = resnet8()
    job = compressor(model, hwprune.Speedup(5.0), penalty=penalty)
    train(model, job.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)))
    result = job.finish([IMAGES])
    predicted = result.report.predicted_us
    assert predicted["slim"] <= predicted["dense"] / 5.0
    assert hwprune.predict(result.model, shipped_as_here(), IMAGES).total_us == pytest.approx(
        predicted["slim"]
    )
    assert result.report.max_abs_difference < 1e-5
    hwprune.save(result, tmp_path / "slim")
    loaded = hwprune.load(tmp_path / "slim", model=resnet8(seed=1)).eval()
    assert torch.equal(loaded(IMAGES), result.model.eval()(IMAGES))
    nn.functional.cross_entropy(loaded.train()(IMAGES), torch.tensor([0, 1])).backward()


def test_the_exported_network_has_no_trace_of_a_branch_that_is_gone(tmp_path):
    model = Mixed()
    scope = scope_of(model)
    widths = scope.groups.widths.copy()
    places = {axis.name: index for index, axis in enumerate(scope.groups.axes)}
    widths[places["down.0"]] = 0
    widths[places["stem"]] = scope.groups.aligns[places["stem"]]
    alive = scope.groups.strongest(
        scope.groups.member_norms(), torch.ones(scope.groups.member_count, dtype=torch.bool), widths
    )
    with torch.no_grad():
        scope.groups.scale_(alive)
    finished = scope.finish(model, alive, [IMAGES])
    assert not any(parameter.any() for parameter in model.down.parameters())
    kinds = [operator.kind for operator in trace_operators(finished.model, IMAGES)]
    hwprune.export(finished.model, tmp_path / "slim.onnx", IMAGES)
    exported = [node.op_type for node in onnx.load(tmp_path / "slim.onnx").graph.node]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in Mixed().modules())
    assert kinds.count("conv") == exported.count("Conv") == convolutions - 2


class Unequal(nn.Module):
    """A block whose shortcut makes channels of its own, as many as it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.body = Mixed._block(16, 32, 16)
        self.shortcut = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.head((self.shortcut(x) + self.body(x)).relu().mean((2, 3)))


def test_a_branch_leaves_where_what_it_reads_becomes_narrower_than_what_it_is_added_to(tmp_path):
    torch.manual_seed(0)
    model = Unequal()
    scope = scope_of(model)
    groups = scope.groups
    places = {axis.name: index for index, axis in enumerate(groups.axes)}
    widths = groups.widths.copy()
    widths[places["body.0"]] = 0
    widths[places["stem"]] = 8
    everybody = torch.ones(groups.member_count, dtype=torch.bool)
    alive = groups.strongest(groups.member_norms(), everybody, widths)
    with torch.no_grad():
        groups.scale_(alive)
    finished = scope.finish(model, alive, [IMAGES])
    assert finished.max_abs_difference < 1e-5
    assert finished.model.shortcut.weight.shape[:2] == (16, 8)


def test_a_target_that_channels_alone_cannot_reach_is_reached():
    scope = scope_of(resnet8())
    aligns = np.array(scope.groups.aligns)
    narrow, short = (
        float(scope._predictor.latency_us(np.minimum(fewest * aligns, scope.groups.widths)))
        for fewest in (1, scope.groups.fewest)
    )
    assert short < 0.9 * narrow
    target = hwprune.LatencyUs((narrow + short) / 2)
    with pytest.raises(hwprune.HwpruneError, match="cannot be met"):
        hwprune.Compressor(resnet8(), IMAGES, shipped_as_here(), target, total_steps=STEPS, measure=False)
    model = resnet8()
    job = compressor(model, target)
    train(model, job.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)))
    result = job.finish([IMAGES])
    assert result.report.predicted_us["slim"] <= (narrow + short) / 2
    assert any(row.width_after == 0 for row in result.plan.rows if row.unit == "branches")


def test_a_trained_network_loses_branches_by_what_their_readers_lose():
    model = resnet8()
    train(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    job = compressor(model, hwprune.Speedup(4.0), schedule=StrengthSchedule.from_trained(STEPS))
    job.reconstruct_on(torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    train(model, job.wrap(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)))
    result = job.finish([IMAGES])
    assert result.report.predicted_us["slim"] <= result.report.predicted_us["dense"] / 4.0


def test_a_number_of_groups_counts_the_axes_of_a_branch_as_gone_together():
    budget = CountBudget(np.array([8, 8, 4]), 5, [(0, 1)])
    assert budget.used(np.array([[16, 8, 8], [0, 8, 8], [16, 0, 8]])).tolist() == [5.0, 2.0, 2.0]


def test_a_branch_or_a_layer_that_is_kept_stays():
    scope = scope_of(Mixed(), keep=["first", "inverted.0"])
    rows = {row.name: row for row in scope.preview().rows}
    assert rows["first"].reason == "kept on request"
    assert rows["inverted.0"].reason == "kept on request"
    assert rows["first.0"].reason == "kept on request"
    (outer,) = (row for row in scope_of(Mixed(), keep=["first.3"]).preview().rows if row.name == "first")
    assert outer.reason == "kept on request"
    with pytest.raises(hwprune.HwpruneError, match="no such layer"):
        scope_of(Mixed(), keep=["nothing"])


def test_a_network_without_branches_loses_channels_alone():
    lines = []
    model = make_model("lenet5", in_channels=1, image_size=28, classes=4, seed=0)
    images = torch.randn(2, 1, 28, 28)
    job = hwprune.Compressor(
        model, images, shipped_as_here(), hwprune.Keep(0.5), total_steps=2,
        granularity="channel+branch", measure=False, notify=lines.append,
    )  # fmt: skip
    assert any("no residual branch" in str(line) for line in lines)
    job.finish([images])
