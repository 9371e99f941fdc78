"""The scripts that variants ship with run what they ship."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import hwprune
from hwprune.runtime.base import REGISTRY
from hwprune.runtime.formats import FORMATS, convert
from hwprune.shipping import DEPLOYED_AS, RUN_LINES


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(RUN_LINES))
def test_the_script_runs_the_file_beside_it(tmp_path: Path, kind: str) -> None:
    pytest.importorskip(REGISTRY[kind][2])
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    hwprune.export(network, tmp_path / "model.onnx", torch.zeros(2, 3, 8, 8))
    name = "model.onnx"
    if kind in DEPLOYED_AS:
        convert(tmp_path / name, DEPLOYED_AS[kind], tmp_path)
        name = f"model{FORMATS[DEPLOYED_AS[kind]][0]}"
    script = RUN_LINES[kind].format(file=name, threads=1, shape=[2, 3, 8, 8])
    (tmp_path / "run.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "run.py")], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("class")
