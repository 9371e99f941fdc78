"""``hwprune prune`` for a device of 8 bits, and ``hwprune variants --int8``."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import hwprune
from hwprune.cli import main
from hwprune.device.library import load_profile, shipped_folder
from hwprune.device.profile import RuntimeSpec
from hwprune.quantization import accuracy_in_runtime
from hwprune.runtime.base import REGISTRY, kinds_running
from hwprune.runtime.quantize import is_quantized
from hwprune.shipping import make_shippable
from hwprune.variant_tasks import Variant
from hwprune.workloads import load_dataset

QUICK = ["--epochs", "2", "--batch-size", "128", "--keep", "0.5"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles made of the shipped one: of 8 bits, and of a runtime without them.

    Their tables hold the rows of single precision, under another name: nothing here depends on their values.
    """
    folder, shipped = tmp_path_factory.mktemp("profiles"), shipped_folder() / "x86-avx2-ort"
    for name, changed in (
        ("int8", ('precision = "fp32"', 'precision = "int8"')),
        ("mnn-int8", ('kind = "onnxruntime"', 'kind = "mnn"')),
    ):
        (folder / name).mkdir()
        profile = (
            (shipped / "profile.toml").read_text().replace(*changed).replace('"x86-avx2-ort"', f'"{name}"')
        )
        profile = profile.replace('precision = "fp32"', 'precision = "int8"')
        (folder / name / "profile.toml").write_text(profile)
        (folder / name / "latency.csv").write_text(
            (shipped / "latency.csv").read_text().replace(",fp32,", ",int8,")
        )
    return folder


@pytest.fixture(scope="module")
def finished(devices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    result = run("prune", "--profiles", devices, "--device", "int8", "--out", out, *QUICK)
    assert result.exit_code == 0, result.output
    assert "accuracy in single precision" in result.output
    return out


def test_the_device_of_8_bits_gets_a_quantised_network(finished: Path) -> None:
    assert is_quantized(finished / "model.onnx")
    assert not is_quantized(finished / "model.fp32.onnx")
    report = json.loads((finished / "report.json").read_text())
    assert report["environment"]["precision"] == "int8"
    assert report["slim"]["file_bytes"] == (finished / "model.onnx").stat().st_size
    assert report["max_abs_difference"]["runtime"] <= 1e-4
    dataset = load_dataset("digits")
    for name, precision, key in (
        ("model.onnx", "int8", "accuracy"),
        ("model.fp32.onnx", "fp32", "accuracy_fp32"),
    ):
        spec = RuntimeSpec(kind="onnxruntime", precision=precision)
        assert accuracy_in_runtime(finished / name, spec, dataset) == report["slim"][key]
    assert report["dense"].keys() == report["slim"].keys()


def test_other_formats_come_from_the_network_in_single_precision(finished: Path, tmp_path: Path) -> None:
    result = run("export", finished, "--format", "onnx", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "model.fp32.onnx" in result.output
    assert not is_quantized(tmp_path / "model.fp32.onnx")


def test_a_quantised_file_can_be_timed_and_predicted(finished: Path, devices: Path) -> None:
    result = run(
        "measure", finished / "model.onnx", "--profiles", devices, "--device", "int8", "--runs", 20, "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["environment"]["precision"] == "int8"
    profile = hwprune.load_profile("int8", devices)
    quantised, single = (
        hwprune.predict(finished / name, profile).total_us for name in ("model.onnx", "model.fp32.onnx")
    )
    assert quantised == pytest.approx(single, rel=0.05)


def test_a_runtime_without_8_bits_refuses_the_device(devices: Path, tmp_path: Path) -> None:
    pytest.importorskip("MNN")
    for command in (
        ["prune", "--profiles", devices, "--device", "mnn-int8", "--out", tmp_path / "out", *QUICK],
        ["profile", "build", "--runtime", "mnn", "--precision", "int8", "--out", tmp_path / "out"],
    ):
        result = run(*command)
        assert result.exit_code == 1
        assert "Error: the runtime mnn does not run int8 here" in result.stderr
    assert not (tmp_path / "out" / "profile.toml").exists()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("variants") / "out"
    result = run("variants", "--device", "x86-avx2-ort", "--int8", "--out", out, *QUICK)
    assert result.exit_code == 0, result.output
    assert "slim-int8" in result.output
    return out


@pytest.mark.slow
def test_every_variant_is_quantised_scored_and_timed(made: Path) -> None:
    (entry,) = json.loads((made / "manifest.json").read_text())["variants"]
    path = made / entry["name"] / "int8" / "model.int8.onnx"
    assert is_quantized(path)
    assert "int8/model.int8.onnx" in entry["files"]
    told = entry["int8"]
    assert told["file_bytes"] == path.stat().st_size
    spec = RuntimeSpec(kind="onnxruntime", precision="int8")
    assert told["accuracy"] == accuracy_in_runtime(path, spec, load_dataset("digits"))
    assert told["accuracy_fp32"] == pytest.approx(entry["slim"]["accuracy"])
    ratio = told["latency_us_fp32"]["median"] / told["latency_us"]["median"]
    assert told["speedup_over_slim"] == pytest.approx(ratio, rel=1e-3)


@pytest.mark.slow
def test_the_dense_network_is_quantised_scored_and_timed_too(made: Path) -> None:
    (entry,) = json.loads((made / "manifest.json").read_text())["variants"]
    dense = entry["int8"]["dense"]
    (folder,) = (made / ".shared").glob("dense-*-int8-x86-avx2-ort")
    assert is_quantized(folder / "model.int8.onnx")
    assert not is_quantized(folder / "model.fp32.onnx")
    spec = RuntimeSpec(kind="onnxruntime", precision="int8")
    assert dense["accuracy"] == accuracy_in_runtime(folder / "model.int8.onnx", spec, load_dataset("digits"))
    assert dense["accuracy_fp32"] == pytest.approx(entry["dense"]["accuracy"])
    ratio = dense["latency_us_fp32"]["median"] / dense["latency_us"]["median"]
    assert dense["speedup_over_dense"] == pytest.approx(ratio, rel=1e-3)


@pytest.mark.slow
def test_the_report_shows_the_networks_on_8_bits(made: Path) -> None:
    page = (made / "report.html").read_text()
    assert "On 8 bits" in page
    (entry,) = json.loads((made / "manifest.json").read_text())["variants"]
    dense, slim = entry["int8"]["dense"], entry["int8"]
    first_us = dense["latency_us_fp32"]["median"]
    for network, accuracy, latency in (
        ("dense, fp32", dense["accuracy_fp32"], dense["latency_us_fp32"]),
        ("dense, int8", dense["accuracy"], dense["latency_us"]),
        ("slim, fp32", slim["accuracy_fp32"], slim["latency_us_fp32"]),
        ("slim, int8", slim["accuracy"], slim["latency_us"]),
    ):
        us = latency["median"]
        cells = (entry["name"], network, f"{accuracy:.2%}", f"{us:.1f}", f"{first_us / us:.2f}")
        assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" in page
    rows = run("report", made, "--csv").stdout
    assert "slim-int8" in rows


@pytest.mark.slow
def test_the_network_on_8_bits_ships_with_its_numbers_and_runs(made: Path) -> None:
    (entry,) = json.loads((made / "manifest.json").read_text())["variants"]
    readme = (made / entry["name"] / "README.md").read_text()
    assert (
        f"| test accuracy | {entry['int8']['accuracy_fp32']:.2%} | {entry['int8']['accuracy']:.2%} |"
        in readme
    )
    script = made / entry["name"] / "int8" / "run.py"
    assert "int8/run.py" in entry["files"]
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("classes")


@pytest.mark.slow
def test_resume_does_not_quantise_again(made: Path) -> None:
    (entry,) = json.loads((made / "manifest.json").read_text())["variants"]
    again = run("variants", "--device", "x86-avx2-ort", "--int8", "--out", made, "--resume", *QUICK)
    assert again.exit_code == 0, again.output
    assert json.loads((made / "manifest.json").read_text())["variants"] == [entry]


def test_a_device_that_cannot_run_what_is_quantised_is_refused(devices: Path, tmp_path: Path) -> None:
    for name in ("int8", "mnn-int8"):
        result = run(
            "variants", "--profiles", devices, "--device", name, "--int8", "--out", tmp_path / "out", *QUICK
        )
        assert result.exit_code == 1
        assert "cannot be quantised besides" in result.stderr
    assert not (tmp_path / "out").exists()


def test_beside_a_device_with_8_bits_one_without_is_told_and_made_without(
    devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised: dict[str, bool] = {}

    def record(variants: list[Variant], *_rest: object, **_options: object) -> None:
        quantised.update((variant.profile.name, variant.int8) for variant in variants)
        raise KeyboardInterrupt

    monkeypatch.setattr("hwprune.variants._tasks", record)
    arguments = ["--device", "x86-avx2-ort", "--device", "int8", "--profiles", devices, "--int8"]
    result = run("variants", *arguments, "--out", tmp_path / "out", *QUICK)
    assert result.exit_code == 130
    told = result.output.replace("\n", "")
    assert "int8 runs int8 in onnxruntime: its variants are not quantised besides" in told
    assert quantised == {"x86-avx2-ort": True, "int8": False}


@pytest.mark.parametrize("kind", kinds_running("int8"))
def test_a_network_on_8_bits_runs_as_it_is_shipped(finished: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip(REGISTRY[kind][2])
    folder = tmp_path / "variant"
    shutil.copytree(finished, folder)
    record = json.loads((folder / "report.json").read_text())
    spec = RuntimeSpec(kind=kind, precision="int8")
    make_shippable(folder, record, load_profile("x86-avx2-ort").model_copy(update={"runtime": spec}))
    done = subprocess.run(
        [sys.executable, str(folder / "run.py")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("classes")
    assert ", int8, " in (folder / "README.md").read_text()
    if kind == "openvino":
        assert is_quantized(folder / "model.xml")
