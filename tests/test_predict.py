"""What a prediction is made of: a profile's own rows, or, for a template, those that are measured here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import hwprune
from hwprune.device.rows import Row
from hwprune.errors import InputError, ProfileError
from hwprune.operators import Operator
from hwprune.runtime import base, sampling

IMAGES = torch.zeros(2, 3, 8, 8)
#: What every operator takes here, unlike in any shipped table.
HERE_US = 1000.0


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 10)
    )


@pytest.fixture(autouse=True)
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Operator]:
    """Operators that were measured, at no cost; nothing is cached."""
    asked: list[Operator] = []

    def measure(operators: Sequence[Operator], *_arguments: object) -> list[Row]:
        asked.extend(operators)
        return [Row(replace(each, name=""), HERE_US) for each in operators]

    monkeypatch.setattr(sampling, "_measure_chunk", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return asked


def test_the_rows_that_a_template_lacks_are_measured_here_and_kept(
    measured: list[Operator], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = hwprune.load_profile("any-cpu-ort")
    prediction = hwprune.predict(network(), template, IMAGES)
    assert [layer.kind for layer in prediction.layers] == ["conv", "conv", "linear"]
    assert prediction.total_us == pytest.approx(3 * HERE_US)
    assert any(record.levelno == logging.WARNING for record in caplog.records)
    count = len(measured)
    assert count
    hwprune.export(network(), tmp_path / "model.onnx", IMAGES)
    assert hwprune.predict(tmp_path / "model.onnx", template).total_us == pytest.approx(3 * HERE_US)
    assert len(measured) == count


def test_a_template_whose_runtime_is_missing_stays_an_error(
    measured: list[Operator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(base.REGISTRY, "ncnn", ("hwprune.runtime.not_there", "Ncnn", "ncnn", "hwprune[ncnn]"))
    with pytest.raises(ProfileError, match="is a template without a latency table"):
        hwprune.predict(network(), hwprune.load_profile("arm-cortex-a76-ncnn"), IMAGES)
    assert not measured


def test_a_table_of_another_machine_predicts_that_machine(measured: list[Operator]) -> None:
    shipped = hwprune.load_profile("x86-avx2-ort")
    elsewhere = shipped.model_copy(
        update={"hardware": shipped.hardware.model_copy(update={"model": "a machine elsewhere"})}
    )
    model = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
    images = torch.zeros(1, 16, 28, 28)
    here, there = (hwprune.predict(model, each, images) for each in (shipped, elsewhere))
    assert here == there
    assert not measured


def test_a_file_that_fixes_another_batch_size_than_the_profile_is_refused(tmp_path: Path) -> None:
    path, template = tmp_path / "model.onnx", hwprune.load_profile("any-cpu-ort")
    hwprune.export(network(), path, IMAGES)
    model = onnx.load(str(path))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, str(path))
    with pytest.raises(InputError, match=r"fixes its batch size.*expected 1, or .*, got 4.*--batch 4"):
        hwprune.predict(path, template)
    fours = template.model_copy(update={"runtime": template.runtime.model_copy(update={"batch": 4})})
    assert [layer.kind for layer in hwprune.predict(path, fours).layers] == ["conv", "conv", "linear"]


def test_arguments_that_are_none_are_told() -> None:
    profile = hwprune.load_profile("any-cpu-ort")
    for ask in (
        lambda: hwprune.predict(network(), "any-cpu-ort", IMAGES),
        lambda: hwprune.predict(3, profile),
        lambda: hwprune.width_predictor("network.onnx", profile, IMAGES),
        lambda: hwprune.preview(network(), IMAGES, "any-cpu-ort"),
        lambda: hwprune.measure("network.onnx", "any-cpu-ort"),
        lambda: hwprune.Compressor(network(), IMAGES, "any-cpu-ort", hwprune.Keep(0.5), total_steps=9),
        lambda: hwprune.Compressor(network(), IMAGES, profile, hwprune.Keep(0.5), total_steps=2.5),
    ):
        with pytest.raises(InputError, match=r"expected"):
            ask()


def test_a_number_of_runs_is_whole(tmp_path: Path) -> None:
    hwprune.export(network(), tmp_path / "model.onnx", IMAGES)
    for runs in (0, 2.5, "x"):
        with pytest.raises(InputError, match="no number of runs"):
            hwprune.measure(tmp_path / "model.onnx", hwprune.load_profile("any-cpu-ort"), runs)  # type: ignore[arg-type]
