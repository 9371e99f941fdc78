"""Versions of a network are exported and timed; the dense one is exported once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hwprune
from hwprune.runtime import bench
from hwprune.runtime.bench import DENSE, ExportedOnce, export_and_time
from hwprune.runtime.timing import Timing

IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Sizes:
    """A bench on which a network takes a microsecond for every byte of its file."""

    def localize(self, profile: Any, *_arguments: object, **_named: object) -> Any:
        return profile

    def time(self, paths: Mapping[str, Path], *_arguments: object) -> dict[str, Timing]:
        sizes = {name: float(path.stat().st_size) for name, path in paths.items()}
        return {name: Timing(size, size, size, 1) for name, size in sizes.items()}


def test_the_dense_network_is_exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def export(model: nn.Module, path: Path, *arguments: Any, **named: Any) -> object:
        written.append(path)
        return hwprune.export(model, path, *arguments, **named)

    monkeypatch.setattr(bench, "export", export)
    profile, exported = hwprune.load_profile("any-cpu-ort"), ExportedOnce()

    def timed(width: int, held: ExportedOnce | None) -> dict[str, Timing]:
        networks = {DENSE: nn.Conv2d(1, 16, 3), "slim": nn.Conv2d(1, width, 3)}
        return export_and_time(networks, IMAGES, profile, Sizes(), exported=held)

    first, second = timed(8, exported), timed(4, exported)
    assert written.count(exported.dense) == 1
    assert len(written) == 3
    assert first[DENSE] == second[DENSE]
    assert first["slim"].median_us > second["slim"].median_us
    timed(4, None)
    assert len(written) == 5
    assert not any(path.exists() for path in written if path != exported.dense)
    folder = exported.dense.parent
    assert folder.is_dir()
    del exported
    assert not folder.exists()
