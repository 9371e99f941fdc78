"""Versions of a network are exported and timed; the dense one is exported once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hwprune
from hwprune.runtime import bench
from hwprune.runtime.bench import DENSE, Exports

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
