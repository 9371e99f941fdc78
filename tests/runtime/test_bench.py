"""Versions of a network are exported and timed; the dense one is exported once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hwprune
from hwprune.device.profile import RuntimeSpec
from hwprune.runtime import bench
from hwprune.runtime.bench import DENSE, Exports
from hwprune.runtime.onnxruntime import OnnxRuntime, OnnxRuntimeSession
from hwprune.runtime.stopwatch import BLOCK, LOADINGS
from hwprune.runtime.timing import measure_alternately

IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_the_dense_network_is_exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def export(model: nn.Module, path: Path, *arguments: Any, **named: Any) -> object:
        written.append(path)
        return hwprune.export(model, path, *arguments, **named)

    monkeypatch.setattr(bench, "export", export)
    profile, exports = hwprune.load_profile("any-cpu-ort"), Exports()

    def contents(width: int) -> dict[str, bytes]:
        networks = {DENSE: nn.Conv2d(1, 16, 3), "slim": nn.Conv2d(1, width, 3)}
        with exports.files(networks, IMAGES, profile) as paths:
            return {name: path.read_bytes() for name, path in paths.items()}

    first, second = contents(8), contents(4)
    assert len(written) == 3
    assert first[DENSE] == second[DENSE]
    assert len(first["slim"]) > len(second["slim"])
    assert not any(path.parent.exists() for path in written)
    exports = Exports()
    assert contents(4)[DENSE] != first[DENSE]  # other weights
    assert len(written) == 5


@pytest.mark.parametrize(("runs", "loadings"), [(None, LOADINGS), (2 * BLOCK, 2), (1, 1)])
def test_files_are_loaded_as_often_as_the_record_says(
    monkeypatch: pytest.MonkeyPatch, runs: int | None, loadings: int
) -> None:
    opened: list[Path] = []
    open_file = OnnxRuntime.open

    def noted(self: OnnxRuntime, path: Path, spec: RuntimeSpec) -> OnnxRuntimeSession:
        opened.append(path)
        return open_file(self, path, spec)

    monkeypatch.setattr(OnnxRuntime, "open", noted)
    profile = hwprune.load_profile("any-cpu-ort")
    with Exports().files({DENSE: nn.Conv2d(1, 8, 3), "slim": nn.Conv2d(1, 4, 3)}, IMAGES, profile) as paths:
        timings = measure_alternately(paths, profile, runs)
    assert sorted(opened) == sorted(loadings * list(paths.values()))
    assert {timing.environment["loadings"] for timing in timings.values()} == {loadings}
