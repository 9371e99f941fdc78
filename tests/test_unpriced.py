"""Networks with an operator that has no price: prunable to a number of groups, not to a latency."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import hwprune
from hwprune.cli import main
from hwprune.device.rows import Row
from hwprune.errors import MissingRowError
from hwprune.operators import Operator
from hwprune.runtime import bench, sampling
from hwprune.runtime.operator_models import check_known
from hwprune.targets import Target

IMAGES = torch.zeros(2, 3, 8, 8)


class Unpriced(nn.Module):
    """Two convolutions with an activation between them that no table knows."""

    def __init__(self, in_channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(in_channels, 32, 3), nn.Conv2d(32, 32, 3)
        self.head = nn.Linear(32, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.second(nn.functional.softsign(self.first(images))))
        return self.head(hidden.mean((2, 3)))


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows by the size of operators; nothing is cached."""

    def by_size(operators: Sequence[Operator], *_arguments: object) -> list[Row]:
        for each in operators:
            check_known(each, "onnxruntime")
        return [Row(replace(each, name=""), 1.0 + sampling.bytes_of(each) / 1e3) for each in operators]

    monkeypatch.setattr(sampling, "_measure_chunk", by_size)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def job(target: Target, *, device: str = "x86-avx2-ort", **options: object) -> hwprune.Compressor:
    torch.manual_seed(0)
    profile = hwprune.load_profile(device)
    return hwprune.Compressor(Unpriced(), IMAGES, profile, target, total_steps=4, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("granularity", ["channel", "weight", "shape"])
def test_a_number_of_groups_needs_no_prices(granularity: str) -> None:
    notes: list[str] = []
    compressor = job(
        hwprune.Keep(0.5), granularity=granularity, notify=notes.append, measure=granularity != "shape"
    )
    assert any("no latency is predicted" in note and "abs" in note for note in notes)
    assert compressor.dense_predicted_us is None
    result = compressor.finish()
    assert result.report.predicted_us == {"dense": None, "slim": None}
    assert result.report.groups["kept"] <= result.report.groups["budget"] < result.report.groups["total"]
    assert not any(row.staircase for row in result.plan.rows)


def test_what_has_a_price_is_measured_regardless() -> None:
    table = job(hwprune.Keep(0.5), notify=lambda line: None).profile.table
    assert table is not None
    assert {"conv", "linear"} <= {row.operator.kind for row in table}


def test_a_latency_names_the_operator_that_has_no_price() -> None:
    with pytest.raises(MissingRowError, match="kind abs cannot be measured"):
        job(hwprune.Speedup(1.5), notify=lambda line: None)


@pytest.mark.parametrize("device", ["x86-avx2-ort", "x86-avx512-ort", "any-cpu-ort"])
def test_nothing_is_measured_for_a_number_of_groups_on_request(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def localize(*_arguments: object, **_options: object) -> None:
        raise AssertionError("rows are measured")

    monkeypatch.setattr(bench, "localize", localize)
    compressor = job(hwprune.Keep(0.5), device=device, measure=False, notify=lambda line: None)
    align = hwprune.load_profile(device).align_for(Operator("conv", 3, 32, 8, 8, 3, 3))
    kept = compressor.finish().model.get_submodule("first").weight.shape[0]
    assert kept < 32
    assert kept % align == 0


def test_a_table_of_another_machine_prices_nothing_here() -> None:
    profile = hwprune.load_profile("x86-avx2-ort")
    foreign = profile.model_copy(
        update={"hardware": profile.hardware.model_copy(update={"model": "elsewhere"})}
    )
    plain = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    compressor = hwprune.Compressor(
        plain, IMAGES, foreign, hwprune.Keep(0.5), total_steps=4, measure=False, notify=lambda line: None
    )
    assert compressor.dense_predicted_us is None
    assert compressor.profile.table is None


def test_a_run_tells_honestly_that_nothing_was_predicted(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["prune", "--model", "tests.test_unpriced:Unpriced", "--keep", "0.5", "--out", str(out)]
    result = CliRunner().invoke(main, [*arguments, "--epochs", "1", "--train-images", "64"])
    assert result.exit_code == 0, result.output
    assert "no latency is predicted" in result.output
    record = json.loads((out / "report.json").read_text())
    assert record["predicted_us"] == record["prediction_error"] == {"dense": None, "slim": None}
    assert record["correction"] is None
    assert pd.read_csv(out / "history.csv")["predicted_us"].isna().all()
    assert CliRunner().invoke(main, ["report", str(out)]).exit_code == 0
