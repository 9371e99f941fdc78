"""``hwprune export`` and ``hwprune report`` on a finished run."""

from __future__ import annotations

import io
import json
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from hwprune import charts
from hwprune.cli import main
from hwprune.device.profile import RuntimeSpec
from hwprune.errors import InputError, RuntimeUnavailableError, VerificationError
from hwprune.quantized_export import INT8_FORMATS
from hwprune.runtime import formats
from hwprune.runtime.base import REGISTRY, get_runtime
from hwprune.runtime.timing import random_feed


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    result = run("prune", "--out", out, "--epochs", 2, "--batch-size", 128, "--keep", 0.5)
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("name", sorted(formats.FORMATS))
def test_every_format_computes_the_same(finished: Path, tmp_path: Path, name: str) -> None:
    ending, _, reader = formats.FORMATS[name]
    pytest.importorskip(REGISTRY[reader][2])
    result = run("export", finished, "--format", name, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    spec = RuntimeSpec(kind=reader)
    exported = get_runtime(reader).open(tmp_path / f"model{ending}", spec)
    original = get_runtime("onnxruntime").open(finished / "model.onnx", RuntimeSpec(kind="onnxruntime"))
    for batch in (1, 3):
        feed = random_feed(original.inputs, batch)
        renamed = dict(zip((item.name for item in exported.inputs), feed.values(), strict=True))
        np.testing.assert_allclose(exported.run(renamed)[0], original.run(feed)[0], atol=1e-4)
    assert (
        sum(path.stat().st_size for path in tmp_path.iterdir())
        < (finished / "model.onnx").stat().st_size * 1.2
    )


def test_a_conversion_that_changes_the_network_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "TOLERANCE", -1.0)
    (tmp_path / "model.onnx").write_text("of another run")
    with pytest.raises(VerificationError, match="does not compute"):
        formats.convert(finished / "model.onnx", "onnx", tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of another run"]


@pytest.mark.parametrize("detour", [".", "slim/.."])
def test_the_original_is_not_overwritten(finished: Path, detour: str) -> None:
    before = (finished / "model.onnx").read_bytes()
    result = run("export", finished, "--format", "onnx", "--out", finished / detour)
    assert result.exit_code == 1
    assert "would take the place of the file that it is made from" in result.stderr
    assert (finished / "model.onnx").read_bytes() == before


def test_an_engine_that_cannot_be_built_leaves_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    result = run("export", finished, "--format", "tensorrt", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: the runtime tensorrt needs the package tensorrt")
    assert "install 'hwprune[tensorrt]'" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_there_is_nothing_to_export_or_report_in_another_folder(tmp_path: Path) -> None:
    for command in ("export", "report"):
        result = run(command, tmp_path)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")


@pytest.mark.parametrize("kind", sorted(REGISTRY))
def test_every_runtime_opens_and_times_a_file(finished: Path, kind: str) -> None:
    pytest.importorskip(REGISTRY[kind][2])
    runtime = get_runtime(kind)
    assert runtime.version()[0].isdigit()
    session = runtime.open(finished / "model.onnx", RuntimeSpec(kind=kind))
    (item,) = session.inputs
    assert item.shape[1:] == (1, 8, 8)
    assert session.run(random_feed(session.inputs, 2))[0].shape == (2, 10)


@pytest.mark.parametrize("kind", sorted(REGISTRY))
def test_every_runtime_refuses_what_is_no_model(tmp_path: Path, kind: str) -> None:
    pytest.importorskip(REGISTRY[kind][2])
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    with pytest.raises(RuntimeUnavailableError, match="refuses the model"):
        get_runtime(kind).open(tmp_path / "x.onnx", RuntimeSpec(kind=kind))


class Outline(HTMLParser):
    """Collects what a page links to and whether its elements are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("href", "src", "xlink:href") and value:
                self.links.append(value)


def test_the_page_is_self_contained_and_every_link_leads_somewhere(finished: Path) -> None:
    assert run("report", finished).exit_code == 0
    outline = Outline()
    outline.feed((finished / "report.html").read_text())
    assert len(set(outline.ids)) == len(outline.ids)
    assert outline.links
    assert all(link.startswith("#") and link[1:] in outline.ids for link in outline.links)
    assert "script" not in outline.tags
    layers = json.loads((finished / "report.json").read_text())["layers"]
    curves, staircases, accuracy_against_latency = 4, sum(bool(each["staircase"]) for each in layers), 1
    assert staircases > 0
    assert outline.tags.count("svg") == curves + staircases + accuracy_against_latency


def test_a_page_without_matplotlib_says_what_is_missing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    monkeypatch.setattr(charts, "available", lambda: False)
    assert run("report", copy).exit_code == 0
    page = (copy / "report.html").read_text()
    assert "hwprune[report]" in page
    assert "<svg" not in page


def test_the_numbers_come_as_csv_and_as_json(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert json.loads(run("report", finished, "--json").stdout) == report
    rows = pd.read_csv(io.StringIO(run("report", finished, "--csv").stdout)).set_index("network")
    assert rows.loc["slim", "latency_us_median"] == report["slim"]["latency_us"]["median"]
    assert run("report", finished, "--json", "--csv").exit_code == 1


def test_a_damaged_report_is_told(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    for content in ("{", "[]", "{}"):
        (copy / "report.json").write_text(content)
        result = run("report", copy)
        assert result.exit_code == 1
        assert "report.json" in result.stderr


@pytest.mark.parametrize("options", [[], ["--csv"]])
def test_a_report_without_a_key_names_the_file_and_the_key(
    finished: Path, tmp_path: Path, options: list[str]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    record = json.loads((finished / "report.json").read_text())
    for key in ("model", "predicted_us", "speedup", "slim"):
        (tmp_path / "run" / "report.json").write_text(
            json.dumps({name: value for name, value in record.items() if name != key})
        )
        result = run("report", tmp_path / "run", *options)
        assert result.exit_code == 1
        assert f"run/report.json): expected the key '{key}'" in result.stderr
    (tmp_path / "run" / "report.json").write_text(json.dumps({**record, "slim": 3}))
    result = run("report", tmp_path / "run", *options)
    assert "the file does not hold what it should" in result.stderr
    shutil.copy(finished / "report.json", tmp_path / "run" / "report.json")
    (tmp_path / "run" / "history.csv").write_text("epoch\n1\n")
    assert "history.csv): expected the columns phase, loss" in run("report", tmp_path / "run").stderr


@pytest.mark.parametrize("options", [[], ["--csv"]])
def test_a_manifest_without_a_key_names_the_file_and_the_key(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"variants": [{"status": "done"}]}))
    result = run("report", tmp_path, *options)
    assert result.exit_code == 1
    assert f"manifest.json): expected the key '{'model' if options else 'device'}'" in result.stderr


@pytest.mark.parametrize("name", sorted(INT8_FORMATS))
def test_a_network_is_quantised_on_the_data_of_its_run(finished: Path, tmp_path: Path, name: str) -> None:
    kind = INT8_FORMATS[name]
    pytest.importorskip(REGISTRY[kind][2])
    result = run(
        "export", finished, "--format", name, "--out", tmp_path, "--calibration-images", 100, "--json"
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["calibration_images"] == 100
    slim = json.loads((finished / "report.json").read_text())["slim"]
    assert told["accuracy"]["before"] == pytest.approx(slim["accuracy"])
    assert told["accuracy"]["after"] == pytest.approx(slim["accuracy"], abs=0.05)
    assert set(told["files"]) == {str(path) for path in tmp_path.iterdir()}
    assert sum(told["files"].values()) < 0.5 * (finished / "model.onnx").stat().st_size
    spec = RuntimeSpec(kind=kind, precision="int8")
    (path,) = (path for path in tmp_path.iterdir() if path.suffix in (".onnx", ".xml"))
    session = get_runtime(kind).open(path, spec)
    assert session.run(random_feed(session.inputs, 3))[0].shape == (3, 10)
    again = run("export", finished, "--format", name, "--out", tmp_path)
    assert "on 8 bits (512 calibration images)" in again.stdout


def test_a_quantised_file_is_not_converted_to_what_cannot_hold_it(finished: Path, tmp_path: Path) -> None:
    assert run("export", finished, "--format", "onnx-int8", "--out", tmp_path).exit_code == 0
    for name in ("onnx", "mnn", "ncnn"):
        with pytest.raises(InputError, match="does not hold quantised networks"):
            formats.convert(tmp_path / "model.int8.onnx", name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
