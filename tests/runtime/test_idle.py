"""What an idle kernel takes is told by two networks of such kernels, which nothing records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hwprune.device.profile import RuntimeSpec
from hwprune.runtime import idle
from hwprune.runtime.base import Array, InputInfo
from hwprune.runtime.idle import idle_chain, idle_us

SPEC = RuntimeSpec(kind="onnxruntime")


class Chain:
    """Takes 5 us a run and so much for every kernel, by a clock of its own."""

    inputs = (InputInfo("y0", (1, 8, 1, 1), np.dtype(np.float32)),)

    def __init__(self, kernels: int, each_us: float) -> None:
        self.us = 5.0 + kernels * each_us

    def clocked(self, _feed: Mapping[str, Array]) -> object:
        return lambda: self.us


class Runtime:
    def __init__(self, each_us: float) -> None:
        self.each_us, self.opened = each_us, 0

    def open(self, path: Path, _spec: RuntimeSpec) -> Chain:
        self.opened += 1
        return Chain(sum(node.op_type == "Conv" for node in onnx.load(path).graph.node), self.each_us)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    idle_us.cache_clear()
    yield
    idle_us.cache_clear()


@pytest.mark.parametrize("each_us", [0.0, 0.75])
def test_what_a_run_takes_besides_its_kernels_does_not_count(
    each_us: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(each_us)
    monkeypatch.setattr(idle, "runtime_for", lambda _spec: runtime)
    assert idle_us(SPEC) == pytest.approx(each_us)
    assert idle_us(SPEC) == pytest.approx(each_us)
    assert runtime.opened == 2


def test_a_chain_runs_every_kernel_and_its_values_stay_normal() -> None:
    session = onnxruntime.InferenceSession(idle_chain(48, batch=2))
    values = session.run(None, {"y0": np.ones((2, 8, 1, 1), np.float32)})[0]
    assert values.shape == (2, 8, 1, 1)
    assert np.all((values == 0) | (values > 1e-6))
    assert values.any()
    assert values.max() < 100


def test_an_idle_kernel_takes_something_and_little() -> None:
    assert 0.01 < idle_us(SPEC) < 50
