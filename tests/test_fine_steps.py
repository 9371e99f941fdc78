"""Channels of layers that are no wider than one step of the device leave in parts of that step."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
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


@pytest.fixture
def profile() -> DeviceProfile:
    """Steps of 16, and another kernel where 4 does not divide the inputs."""
    template = hwprune.load_profile("any-cpu-ort")
    steps = {"align": 16, "divisor": 4}
    return template.model_copy(
        update={
            "rule": tuple(
                rule.model_copy(update=steps) if rule.op == "conv" else rule for rule in template.rule
            )
        }
    )


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
    rows = measure_rows(operators, profile, working_set=10**6, time_operators=time_operators)
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
