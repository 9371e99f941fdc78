"""Latency targets for single weights, on devices whose kernels skip zeros."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from profiles_here import hardware_here
from torch import nn
from trained_on_noise import train as train_on_noise

import hwprune
from hwprune.device.kinds import with_channels
from hwprune.device.profile import DeviceProfile, Rule
from hwprune.device.rows import Row
from hwprune.device.table import LatencyTable
from hwprune.errors import TargetError
from hwprune.graph.trace import trace_operators
from hwprune.groups.weight import WeightGroups
from hwprune.operators import Operator, multiply_accumulates
from hwprune.runtime.patience import Patience
from hwprune.runtime.rows import with_zeros
from hwprune.zeros_on_device import ZerosLoop

STEPS = 40
INPUTS = torch.zeros(2, 1, 8, 8)
RULES = (Rule(op="*", granularity="channel"), Rule(op="*", granularity="weight"))


def network(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4),
    )  # fmt: skip


def latency_us(operator: Operator) -> float:
    return 1.0 + operator.density * multiply_accumulates(operator) / 1000


def rows(operator: Operator) -> Iterator[Row]:
    """An operator from one channel to its own width."""
    whole = replace(operator, name="")
    inputs, outputs = (1, whole.in_channels), (1, whole.out_channels)
    for widths in product(inputs, outputs) if whole.matrix else zip(inputs, outputs, strict=True):
        at = with_channels(whole, *widths)
        yield Row(at, latency_us(at))


def skipping(model: nn.Module, rules: tuple[Rule, ...] = RULES) -> DeviceProfile:
    """A device that was measured here, on which a weight of zero costs nothing."""
    operators = trace_operators(model, INPUTS)
    dense = {row.operator: row for operator in operators for row in rows(operator)}
    sparse = [replace(operator, name="") for operator in with_zeros(operators)]
    zeros = {operator: Row(operator, latency_us(operator)) for operator in sparse}
    template = hwprune.load_profile("any-cpu-ort")
    table = LatencyTable((*dense.values(), *zeros.values()))
    return template.model_copy(update={"hardware": hardware_here(), "rule": rules, "rows": table})


def compressor(
    model: nn.Module,
    profile: DeviceProfile,
    factor: float,
    granularity: str = "weight",
) -> hwprune.Compressor:
    target = hwprune.Speedup(factor)
    return hwprune.Compressor(
        model, INPUTS, profile, target, total_steps=STEPS, measure=False, granularity=granularity
    )


def train(job: hwprune.Compressor, model: nn.Module) -> hwprune.Result:
    train_on_noise(model, job.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)), STEPS)
    return job.finish()


def test_zeros_meet_a_latency_where_they_are_skipped() -> None:
    model = network()
    profile = skipping(model)
    result = train(compressor(model, profile, 2.0), model)
    predicted = result.report.predicted_us
    assert 0.9 * predicted["dense"] / 2 < predicted["slim"] <= predicted["dense"] / 2
    assert hwprune.predict(result.model, profile, INPUTS).total_us == pytest.approx(predicted["slim"])
    assert hwprune.predict(network(), profile, INPUTS).total_us == pytest.approx(predicted["dense"])


def test_zeros_of_a_file_count_as_those_of_the_network(tmp_path: Path) -> None:
    model = network()
    profile = skipping(model)
    dense_us = hwprune.predict(model, profile, INPUTS).total_us
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand_like(parameter) < 0.3)
    hwprune.export(model, tmp_path / "model.onnx", INPUTS)
    predicted = hwprune.predict(tmp_path / "model.onnx", profile).total_us
    assert predicted == pytest.approx(hwprune.predict(model, profile, INPUTS).total_us)
    assert predicted < 0.7 * dense_us


def test_the_reason_is_told_where_zeros_are_multiplied_like_anything_else() -> None:
    model = network()
    with pytest.raises(TargetError, match="onnxruntime multiplies by zeros") as caught:
        compressor(model, skipping(model, RULES[:1]), 2.0)
    assert "mnn-sparse" in str(caught.value)


def test_blocks_are_refused_a_latency_everywhere() -> None:
    model = network()
    with pytest.raises(TargetError, match="blocks have the same number of zeros everywhere"):
        compressor(model, skipping(model), 2.0, "block")


def test_a_latency_out_of_reach_is_told_with_what_is_in_reach() -> None:
    model = network()
    with pytest.raises(TargetError, match="times faster than dense"):
        compressor(model, skipping(model), 100.0)


def test_a_network_whose_weights_died_is_timed_with_as_many_as_asked_for() -> None:
    model = network()
    groups = WeightGroups(model)
    with torch.no_grad():
        for layer in groups.layers:
            layer.tensor.mul_(torch.rand_like(layer.tensor) < 0.2)
    dead = {layer.parameter: int(layer.tensor.count_nonzero()) for layer in groups.layers}
    loop = ZerosLoop(model, INPUTS, groups.layers, skipping(network()), Patience(pytest.fail))
    sizes = np.array([layer.tensor.numel() for layer in groups.layers])
    for widths, kept in ((sizes, {}), (sizes // 2, loop.kept(sizes // 2))):
        built = loop._with_zeros(kept)
        found = [int(built.get_parameter(layer.parameter).count_nonzero()) for layer in groups.layers]
        assert found == widths.tolist()
    assert {layer.parameter: int(layer.tensor.count_nonzero()) for layer in groups.layers} == dead
