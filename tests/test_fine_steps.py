"""Channels of layers that are no wider than one step of the device leave in parts of that step."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune.device.predict import predict_operators
from hwprune.device.profile import DeviceProfile, RuntimeSpec
from hwprune.device.rows import Row
from hwprune.device.table import LatencyTable
from hwprune.graph.trace import trace_operators
from hwprune.operators import Operator
from hwprune.runtime.rows import measure_rows
from hwprune.sampled_networks import Narrower, Network

IMAGES = torch.zeros(2, 1, 12, 12)


def network(*widths: int) -> nn.Sequential:
    """Convolutions one after the other, and a classifier."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((1, *widths), widths, strict=False):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 4))


def device(align: int, divisor: int, *, linear: int = 1) -> DeviceProfile:
    """Steps of convolutions, and the divisor of linear layers."""
    template = hwprune.load_profile("any-cpu-ort")
    steps = {
        "conv": {"align": align, "divisor": divisor},
        "linear": {"align": linear, "divisor": linear},
        "conv_transpose": {"align": 1},
    }
    rules = tuple(rule.model_copy(update=steps[rule.op]) for rule in template.rule)
    return template.model_copy(update={"rule": rules})


@pytest.fixture
def profile() -> DeviceProfile:
    """Steps of 16, and another kernel where 4 does not divide the inputs."""
    return device(16, 4)


def time_operators(
    operators: Sequence[Operator], _spec: RuntimeSpec, _progress: object = None, *, working_set: int
) -> tuple[Row, ...]:
    """Kernels that read fewer than 16 channels directly and write whole blocks of 16."""
    return tuple(
        Row(replace(each, name=""), each.in_channels * (-(-each.out_channels // 16)) + 0.5)
        for each in operators
    )


def test_a_narrow_layer_leaves_in_parts_of_a_step_and_a_wide_one_in_steps(profile: DeviceProfile) -> None:
    model = network(16, 12, 48)
    found = Narrower(Network(model, IMAGES), profile)
    widths: dict[str, set[int]] = {name: set() for name in ("0", "2", "4")}
    for seed in range(60):
        made = found.random(np.random.default_rng(seed)).model
        for name, seen in widths.items():
            seen.add(made.get_submodule(name).weight.shape[0])
    assert widths["0"] <= {4, 8, 12, 16}
    assert widths["2"] <= {4, 8, 12}
    assert widths["4"] <= {16, 32, 48}
    assert min(map(len, widths.values())) >= 2


def test_every_part_has_a_price_of_its_own(profile: DeviceProfile) -> None:
    operators = trace_operators(network(16, 12, 48), IMAGES)
    rows = measure_rows(operators, profile, working_set=10**6, time_operators=time_operators, unaligned=True)
    priced = profile.model_copy(update={"rows": LatencyTable(rows)})
    table = priced.table
    assert table is not None
    for operator in operators:
        assert table.covers_narrower(operator, priced.steps_for(operator))
    second = next(each for each in operators if (each.in_channels, each.out_channels) == (16, 12))
    for inputs in (4, 8, 12, 16):
        for outputs in (4, 8, 12):
            narrow = replace(second, in_channels=inputs, out_channels=outputs)
            assert table.latency_us(narrow, priced.steps_for(narrow)) == inputs + 0.5


def test_a_table_without_rows_within_a_step_does_not_cover_what_is_no_wider(profile: DeviceProfile) -> None:
    conv = Operator("conv", 32, 16, 12, 12, 3, 3, padding=1)
    steps = profile.steps_for(conv)
    coarse = LatencyTable(tuple(Row(replace(conv, in_channels=width), 1.0 * width) for width in (16, 32)))
    assert not coarse.covers_narrower(conv, steps)
    wide = replace(conv, out_channels=32)
    wider = [Row(replace(row.operator, out_channels=32), row.median_us) for row in coarse.rows]
    assert coarse.merged(wider).covers_narrower(wide, steps)
    fine = measure_rows([conv], profile, working_set=10**6, time_operators=time_operators)
    assert coarse.merged(fine).covers_narrower(conv, steps)


@pytest.mark.parametrize("groups", [2, 8, 16])
def test_grouped_convolutions_leave_in_whole_steps(profile: DeviceProfile, groups: int) -> None:
    conv = Operator("conv", 16, 16, 12, 12, 3, 3, padding=1, groups=groups)
    steps = profile.steps_for(conv)
    rows = measure_rows([conv], profile, working_set=10**6, time_operators=time_operators)
    assert LatencyTable(rows).covers_narrower(conv, steps)
    unit = 1 if conv.depthwise else groups
    assert all(row.operator.in_channels % unit == row.operator.out_channels % unit == 0 for row in rows)
    assert min(row.operator.out_channels for row in rows) == (4 if conv.depthwise else 16)


class Concat(nn.Module):
    """Two convolutions side by side, read by a third and a classifier."""

    def __init__(self, left: int, right: int, reader: int = 12) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, left, 3, padding=1), nn.Conv2d(1, right, 3, padding=1)
        self.reader, self.head = nn.Conv2d(left + right, reader, 3), nn.Linear(reader, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        both = torch.relu(torch.cat([self.left(images), self.right(images)], dim=1))
        logits: torch.Tensor = self.head(torch.relu(self.reader(both)).mean((2, 3)))
        return logits


@pytest.mark.parametrize("rules", [(8, 4, 1), (16, 4, 1), (16, 4, 16), (8, 2, 4), (8, 1, 4)])
@pytest.mark.parametrize("widths", [(6, 8, 40), (5, 8, 34), (10, 16, 40), (12, 14, 36), (24, 14, 40)])
def test_every_width_that_may_be_left_has_a_price(
    rules: tuple[int, int, int], widths: tuple[int, int, int]
) -> None:
    align, divisor, linear = rules
    profile, model = device(align, divisor, linear=linear), Concat(*widths)
    operators = trace_operators(model, IMAGES)
    rows = measure_rows(operators, profile, working_set=10**6, time_operators=time_operators, unaligned=True)
    priced = profile.model_copy(update={"rows": LatencyTable(rows)})
    maker = Narrower(Network(model, IMAGES), profile)
    for seed in range(40):
        narrow = maker.random(np.random.default_rng(seed))
        assert predict_operators(trace_operators(narrow.model, IMAGES), priced).total_us > 0


def test_nothing_leaves_in_parts_of_a_step_that_nobody_measured() -> None:
    conv = Operator("conv", 8, 8, 12, 12, 3, 3)
    assert (device(8, 1).align_for(conv), device(8, 4).align_for(conv)) == (8, 4)


def test_rows_of_wider_operators_do_not_stand_for_pairs_of_parts(profile: DeviceProfile) -> None:
    conv = Operator("conv", 16, 16, 12, 12, 3, 3, padding=1)
    wide = [replace(conv, out_channels=64), replace(conv, in_channels=64)]
    rows = [
        row
        for each in wide
        for row in measure_rows([each], profile, working_set=10**6, time_operators=time_operators)
    ]
    assert not LatencyTable(tuple(rows)).covers_narrower(conv, profile.steps_for(conv))
