"""``torchrun -m hwprune prune`` as it is: the same network as one process makes, and clear errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def prune(out: Path, *arguments: str, processes: int) -> subprocess.CompletedProcess[str]:
    launch = LAUNCH if processes == 2 else []
    command = [sys.executable, *launch, "-m", "hwprune", "prune", "--out", str(out), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["XDG_CACHE_HOME"] = str(out.parent / "cache")
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.parametrize(
    "asked",
    [
        ["--model", "lenet5", "--keep", "0.5"],
        pytest.param(["--model", "resnet8", "--keep", "0.5"], marks=pytest.mark.slow),
        # What the first run measures is kept, so that the second one settles on the same groups.
        pytest.param(["--model", "resnet8", "--speedup", "1.5"], marks=pytest.mark.slow),
        pytest.param(
            ["--model", "lenet5", "--granularity", "block", "--keep", "0.5"], marks=pytest.mark.slow
        ),
    ],
    ids=["lenet5", "resnet8", "latency", "N:M"],
)
def test_two_processes_make_the_network_that_one_makes(asked: list[str], tmp_path: Path) -> None:
    options = [*asked, "--epochs", "2", "--train-images", "128", "--json"]
    runs = {count: prune(tmp_path / str(count), *options, processes=count) for count in (1, 2)}
    assert [run.returncode for run in runs.values()] == [0, 0], runs[2].stderr + runs[1].stderr
    reports = {count: json.loads(run.stdout) for count, run in runs.items()}
    for key in ("groups", "layers", "target"):
        assert reports[1][key] == reports[2][key], key
    histories = {count: pd.read_csv(tmp_path / str(count) / "history.csv") for count in runs}
    assert histories[2]["loss"].to_numpy() == pytest.approx(histories[1]["loss"].to_numpy(), abs=2e-3)
    assert (histories[1]["groups_alive"] == histories[2]["groups_alive"]).all()
    weights = {count: load_file(tmp_path / str(count) / "slim" / "model.safetensors") for count in runs}
    for name, tensor in weights[1].items():
        assert torch.equal(tensor == 0, weights[2][name] == 0), name
        scale = float(tensor.abs().max()) + 1e-3
        assert float((tensor - weights[2][name]).abs().max()) < 1e-2 * scale, name


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "Error: the output folder"),
        pytest.param(("--data", "nowhere:data"), "nowhere", marks=pytest.mark.slow),
        pytest.param(("--speedup", "0.5"), "Error: the speed-up", marks=pytest.mark.slow),
        pytest.param(("--device", "no-such-board"), "no-such-board", marks=pytest.mark.slow),
        pytest.param(("--keep", "0.5", "--keep", "0.4"), "under torchrun", marks=pytest.mark.slow),
    ],
)
def test_an_error_is_told_once(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    if not arguments:
        (tmp_path / "taken").write_text("not ours")
    before = sorted(tmp_path.iterdir())
    run = prune(tmp_path, *arguments, processes=2)
    assert run.returncode == 1
    errors = [line for line in run.stderr.splitlines() if "Error: " in line and told in line]
    assert len(errors) == 1, run.stderr
    assert sorted(tmp_path.iterdir()) == before
