"""The tables of ``tools/compare_devices.py``, on networks that take no training."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import hwprune
from hwprune.runtime.timing import Timing, measure_alternately
from hwprune.variants_page import VariantsFolder

DEVICES = ("any-cpu-ort", "x86-avx2-ort")


@pytest.fixture(scope="module")
def tool(load_tool: Callable[[str], ModuleType]) -> ModuleType:
    return load_tool("compare_devices")


def _entry(model: str, device: str, speedup: float) -> dict[str, Any]:
    return {
        "name": f"{model}-{device}-{speedup:g}",
        "model": model,
        "data": "noise",
        "device": device,
        "target": {"kind": "speedup", "value": speedup},
        "settings": {"device": device, "seed": 0, "train_images": None},
        "status": "done",
        "slim": {"accuracy": 0.5},
    }


@pytest.fixture
def variants(tmp_path: Path) -> Path:
    """A model for two devices at one speed-up, and for one of them at another."""
    entries = [_entry("net", DEVICES[0], 2.0), _entry("net", DEVICES[1], 2.0), _entry("net", DEVICES[0], 3.0)]
    missing = {
        "name": "gone",
        "model": "net",
        "target": {"kind": "speedup", "value": 2.0},
        "status": "failed",
    }
    for entry, width in zip(entries, (24, 8, 4), strict=True):
        folder = tmp_path / entry["name"]
        folder.mkdir()
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3))
        hwprune.export(network, folder / "model.onnx", torch.randn(2, 1, 16, 16))
        layers = [{"name": "0", "width_after": width}, {"name": "2", "width_after": 4}]
        (folder / "report.json").write_text(json.dumps({"schema": 1, "layers": layers}))
    (tmp_path / "manifest.json").write_text(json.dumps({"variants": [*entries, missing]}))
    return tmp_path


def test_every_network_is_timed_on_every_device(
    tool: ModuleType, variants: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "measure_alternately", partial(measure_alternately, runs=200))
    found = tool.networks_at(VariantsFolder.read(variants), 2.0, None)
    assert [network.device for network in found["net"]] == list(DEVICES)
    assert [network.widths["0"] for network in found["net"]] == [24, 8]
    timings = tool.time_everywhere(found["net"])
    assert set(timings) == set(DEVICES)
    for row in timings.values():  # three times the filters take longer, wherever they were pruned for
        assert row[DEVICES[0]].median_us > row[DEVICES[1]].median_us
    assert tool.at_home(timings) == {DEVICES[0]: False, DEVICES[1]: True}


def test_the_page_says_who_is_faster_where(
    tool: ModuleType, variants: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = {DEVICES[0]: (100.5, 100.0), DEVICES[1]: (60.0, 50.0)}  # the first is no faster than by noise

    def timed(files: dict[str, Path], profile: hwprune.DeviceProfile) -> dict[str, Timing]:
        return {
            device: Timing(latency_us, latency_us - 1, latency_us + 1, 9)
            for device, latency_us in zip(files, took[profile.name], strict=True)
        }

    monkeypatch.setattr(tool, "measure_alternately", timed)
    out = tmp_path / "page.md"
    assert CliRunner().invoke(tool.main, [str(variants), "--out", str(out)]).exit_code == 0
    page = out.read_text()
    assert f"| on {DEVICES[1]} | 60.0 (59.0 to 61.0) | **50.0** (49.0 to 51.0) |" in page
    assert f"for: {DEVICES[0]}, {DEVICES[1]}; another one is for: none." in page
    assert "Widths differ in 1 of 2 axes:" in page
    assert "| `0` | 24 | 8 |" in page
    assert "`python tools/compare_devices.py" in page


def test_without_two_devices_there_is_nothing_to_compare(tool: ModuleType, variants: Path) -> None:
    outcome = CliRunner().invoke(tool.main, [str(variants), "--speedup", "3"])
    assert outcome.exit_code == 1
    assert "no model was pruned for two devices to 3 times the speed" in outcome.output
