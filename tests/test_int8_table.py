"""The table of ``tools/int8_table.py``, on a network that takes no training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import hwprune
from hwprune.quantization import quantize_on
from hwprune.runtime.timing import measure_alternately
from hwprune.settings import Settings
from hwprune.targets import Speedup
from hwprune.train.loop import Recipe
from hwprune.workloads import Dataset


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("int8_table")


def test_the_page_has_a_row_for_every_network(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(40, 1, 8, 8, generator=generator), torch.arange(40) % 3
    dataset = Dataset("noise", images, labels, images, labels, 3)
    files = []
    for width in (16, 8):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * width, 3))
        single, quantized = tmp_path / f"{width}.onnx", tmp_path / f"{width}.int8.onnx"
        hwprune.export(network, single, images[:2])
        quantize_on(dataset, single, quantized)
        files += [single, quantized]
    monkeypatch.setattr(tool, "measure_alternately", partial(measure_alternately, runs=20))
    profile = hwprune.load_profile("x86-avx2-ort")
    rows = tool.measure_in("onnxruntime", files, dataset, profile)
    assert [row.network for row in rows] == ["dense fp32", "dense int8", "slim fp32", "slim int8"]
    assert [row.timing.environment["precision"] for row in rows] == ["fp32", "int8", "fp32", "int8"]
    assert [row.file_bytes for row in rows] == [file.stat().st_size for file in files]
    assert rows[0].speedup == 1.0
    assert all(0 <= row.accuracy <= 1 for row in rows)
    settings = Settings("m", "fashion-mnist", profile.name, Speedup(2.0), Recipe(4, 64), train_images=40)
    page = "\n".join(tool.as_markdown(rows, settings, profile))
    for row in rows:
        assert f"| onnxruntime | {row.network} | {row.accuracy:.2%} |" in page
    assert "python tools/int8_table.py" in page
    assert f"onnxruntime {rows[0].timing.environment['runtime_version']}" in page
