"""``prune --tensorboard --distill``: curves beside the history, and what the report says of the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from hwprune.cli import main
from hwprune.cli.tensorboard import CURVES

SMALL = ["--model", "lenet5", "--keep", "0.5", "--epochs", "2", "--train-images", "128", "--json"]


def prune(out: Path, *arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["prune", "--out", str(out), *SMALL, *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_curves_are_those_of_the_history_and_of_every_layer(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard", exc_type=ImportError)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, printed, errors = prune(
        tmp_path / "run", "--tensorboard", tmp_path / "run" / "curves", "--distill", 0.5, "--temperature", 2
    )
    assert code == 0, errors
    report = json.loads(printed)
    assert report["distillation"] == {"weight": 0.5, "temperature": 2.0}
    curves = EventAccumulator(str(tmp_path / "run" / "curves")).Reload()
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    for phase in ("dense", "prune"):
        rows = history[history["phase"] == phase]
        for name in CURVES:
            points = curves.Scalars(f"{name}/{phase}")
            assert [point.step for point in points] == rows["epoch"].tolist()
            assert [point.value for point in points] == pytest.approx(rows[name].tolist(), rel=1e-5), name
    alive = {
        tag.removeprefix("alive_prune/"): curves.Scalars(tag)[-1].value
        for tag in curves.Tags()["scalars"]
        if tag.startswith("alive_prune/")
    }
    assert alive == {
        layer["name"]: layer["width_after"]
        for layer in report["layers"]
        if layer["kept_whole_because"] is None
    }


def test_every_one_of_several_targets_has_curves_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard", exc_type=ImportError)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = tmp_path / "curves"
    code, printed, errors = prune(tmp_path / "run", "--tensorboard", curves, "--keep", 0.7)
    assert code == 0, errors
    names = [variant["name"] for variant in json.loads(printed)["variants"]]
    drawn = {folder.name: EventAccumulator(str(folder)).Reload() for folder in curves.iterdir()}
    assert len(names) == 2
    assert {name for name in drawn if not name.startswith("dense-")} == set(names)
    for name in names:
        history = pd.read_csv(tmp_path / "run" / name / "history.csv")
        rows = history[history["phase"] == "prune"]
        points = drawn[name].Scalars("accuracy/prune")
        assert [point.value for point in points] == pytest.approx(rows["accuracy"].tolist(), rel=1e-5)
    (dense,) = drawn.keys() - set(names)
    assert len(drawn[dense].Scalars("loss/dense")) > 0


def test_a_run_that_does_not_begin_leaves_no_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard", exc_type=ImportError)
    curves = tmp_path / "run" / "curves"
    code, _, errors = prune(tmp_path / "run", "--tensorboard", curves, "--model", "resnet9")
    assert code == 1, errors
    assert not (tmp_path / "run").exists()


def test_curves_without_tensorboard_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, errors = prune(tmp_path / "run", "--tensorboard", tmp_path / "curves")
    assert code == 1
    assert "pip install 'hwprune[tensorboard]'" in errors
    assert not (tmp_path / "run").exists()


def test_a_weight_out_of_range_is_an_error_of_one_line(tmp_path: Path) -> None:
    code, _, errors = prune(tmp_path / "run", "--distill", 2)
    assert code == 1
    assert errors.startswith("Error: the weight of the distillation")
    assert not (tmp_path / "run").exists()
