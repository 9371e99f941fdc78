"""``hwprune variants``: what it makes, shares, skips and ships."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

import hwprune
from hwprune import charts
from hwprune.cli import main
from hwprune.device.library import load_profile, shipped_folder
from hwprune.device.table import LatencyTable
from hwprune.targets import Keep
from hwprune.train.checkpoint import load_checkpoint
from hwprune.train.loop import Recipe, Trainer
from hwprune.variants import Grid
from hwprune.variants_charts import pareto_front
from hwprune.variants_page import VariantsFolder, render_variants
from hwprune.workloads import load_dataset

# Survivors are fitted elsewhere: here it would take most of the time.
QUICK = ["--model", "lenet5", "--epochs", "2", "--batch-size", "128", "--reconstruct", "0"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def entries(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "manifest.json").read_text())["variants"]
    return found


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a template of OpenVINO beside the shipped profiles."""
    folder = tmp_path_factory.mktemp("profiles")
    (folder / "here-openvino").mkdir()
    content = (shipped_folder() / "any-cpu-ort" / "profile.toml").read_text()
    content = content.replace('"any-cpu-ort"', '"here-openvino"').replace('"onnxruntime"', '"openvino"')
    content = content.replace('"CPUExecutionProvider"', '""').replace('isa = ""', 'isa = "avx512"')
    (folder / "here-openvino" / "profile.toml").write_text(content)
    return folder


@pytest.fixture(scope="module")
def made(devices: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object], list[str]]:
    """Two devices at two targets, the command that made them, and the trainings it took."""
    out = tmp_path_factory.mktemp("variants") / "out"
    arguments: list[object] = ["variants", "--profiles", devices, "--out", out, *QUICK]
    for device in ("any-cpu-ort", "here-openvino"):
        arguments += ["--device", device]
    for fraction in (0.4, 0.7):
        arguments += ["--keep", fraction]
    trained: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        original = Trainer.run_epoch

        def counted(self: Trainer, *rest: Any) -> Any:
            trained.append("epoch")
            return original(self, *rest)

        patch.setattr(Trainer, "run_epoch", counted)
        result = run(*arguments)
    assert result.exit_code == 0, result.output
    return out, arguments, trained


def test_every_device_and_target_has_a_variant(made: tuple[Path, list[object], list[str]]) -> None:
    out, _, _ = made
    found = {(entry["device"], entry["target"]["value"]): entry for entry in entries(out)}
    assert set(found) == {(d, t) for d in ("any-cpu-ort", "here-openvino") for t in (0.4, 0.7)}
    for entry in found.values():
        assert entry["status"] == "done"
        for name, digest in entry["files"].items():
            assert hashlib.sha256((out / entry["name"] / name).read_bytes()).hexdigest() == digest
        assert {"model.onnx", "report.json", "README.md", "run.py"} <= entry["files"].keys()


def test_the_dense_training_is_shared(made: tuple[Path, list[object], list[str]]) -> None:
    # one dense training of two epochs; of each device the looser target in two, the tighter one in one
    assert len(made[2]) == 2 + 2 * (2 + 1)
    accuracies = {entry["dense"]["accuracy"] for entry in entries(made[0])}
    assert len(accuracies) == 1


def test_the_dense_network_is_asked_once_for_all_devices_and_targets(
    made: tuple[Path, list[object], list[str]],
) -> None:
    (file,) = (made[0] / ".shared").glob("answers-*.safetensors")
    answers = load_checkpoint(file)["answers"]
    images = 2 * len(load_dataset("digits").train_labels)  # two epochs, each in an order of its own
    assert sum(len(logits) for logits in answers.values()) == images


def test_a_tighter_target_starts_from_the_network_of_the_looser_one(
    made: tuple[Path, list[object], list[str]],
) -> None:
    out, _, _ = made
    loose, tight = entries(out)[:2]
    assert (loose["target"]["value"], tight["target"]["value"]) == (0.7, 0.4)
    reports = [json.loads((out / entry["name"] / "report.json").read_text()) for entry in (loose, tight)]
    assert [report["follows"] for report in reports] == [None, {"kind": "keep", "value": 0.7}]
    wide, narrow = (_kept_positions(out / entry["name"]) for entry in (loose, tight))
    assert wide.keys() <= narrow.keys()
    assert all(narrow[cut] <= wide[cut] for cut in wide)
    assert any(narrow[cut] < wide[cut] for cut in wide)


def _kept_positions(run_folder: Path) -> dict[tuple[str, int], set[int]]:
    structure = json.loads((run_folder / "slim" / "structure.json").read_text())
    return {(cut["tensor"], cut["dim"]): set(cut["kept"]) for cut in structure["cuts"]}


@pytest.mark.slow
def test_from_scratch_no_variant_follows_another(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--from-scratch", "--epochs", 1, "--batch-size", 256, "--keep", 0.9, "--keep", 0.8]
    assert run("prune", "--out", out, *arguments).exit_code == 0
    for entry in entries(out):
        report = json.loads((out / entry["name"] / "report.json").read_text())
        assert report["fine_tune"] is None
        assert report["follows"] is None


def test_weights_of_several_models_are_refused(tmp_path: Path) -> None:
    models = ["--model", "resnet8", "--model", "lenet5"]
    result = run("variants", *models, "--weights", tmp_path / "w.pt", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "one model" in result.stderr


def test_a_variant_runs_as_it_is_shipped(made: tuple[Path, list[object], list[str]]) -> None:
    out, _, _ = made
    for entry in entries(out)[1:3]:  # one of either device
        shown = subprocess.run(
            [sys.executable, "run.py"], cwd=out / entry["name"], capture_output=True, text=True, check=True
        )
        assert shown.stdout.startswith("classes [")


def test_resume_makes_only_what_is_missing(
    made: tuple[Path, list[object], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, arguments, _ = made
    name = entries(out)[-1]["name"]
    before = (out / name / "slim" / "model.safetensors").read_bytes()
    (out / name / "report.json").unlink()
    # As processes leave them that are killed after the report, or while something arrives from a node.
    for left in (out / entries(out)[0]["name"] / "checkpoints", out / ".arriving-7"):
        left.mkdir()
        (left / "part").write_bytes(b"left")
    calls: list[str] = []
    original = Trainer.run_epoch

    def counted(self: Trainer, *rest: Any) -> Any:
        calls.append("epoch")
        return original(self, *rest)

    monkeypatch.setattr(Trainer, "run_epoch", counted)
    assert run(*arguments, "--resume").exit_code == 0
    assert not (out / ".arriving-7").exists()
    assert not any("checkpoints" in file for entry in entries(out) for file in entry["files"])
    assert len(calls) == 1  # the fine-tuning of the one that was missing; the dense network is shared
    assert (out / name / "slim" / "model.safetensors").read_bytes() == before
    other = run(*arguments, "--seed", 1, "--resume")
    assert other.exit_code == 1
    assert "other settings" in other.stderr


def interrupt(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


def interrupt_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The training is interrupted at the beginning of epoch number ``call``."""
    original, calls = Trainer.run_epoch, list[int]()

    def interrupted(self: Trainer, *rest: Any) -> Any:
        calls.append(self.epoch)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(self, *rest)

    monkeypatch.setattr(Trainer, "run_epoch", interrupted)


@pytest.mark.slow
def test_what_a_fresh_start_was_interrupted_before_is_not_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["variants", "--out", out, "--model", "lenet5", "--batch-size", 256, "--keep", 0.9]
    arguments += ["--keep", 0.8, "--epochs"]
    assert run(*arguments, 1).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 2)  # in the dense training
        assert run(*arguments, 2).exit_code == 130
    assert entries(out) == []
    assert run(*arguments, 2, "--resume").exit_code == 0
    for entry in entries(out):
        assert json.loads((out / entry["name"] / "report.json").read_text())["epochs"] == 2


@pytest.mark.parametrize("fault", ["began alone", "gone", "damaged"])
def test_a_variant_goes_on_although_the_looser_one_came_or_went(tmp_path: Path, fault: str) -> None:
    """It began while the looser one was not there, which is there now; or the other way round."""
    out = tmp_path / "out"
    arguments = ["variants", "--out", out, "--model", "lenet5", "--batch-size", 256, "--keep", 0.9]
    arguments += ["--keep", 0.8, "--epochs", 1]
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 3)  # dense, looser, tighter
        assert run(*arguments).exit_code == 130
    assert [entry["status"] for entry in entries(out)] == ["done", "pending"]
    assert "1 of 2 made" in render_variants(VariantsFolder.read(out))
    loose, tight = (next(out.glob(f"lenet5-*-keep-{value}")) for value in (0.9, 0.8))
    finished = (loose / "report.json").read_bytes()
    shared = out / ".shared" / f"{loose.name}.safetensors"
    dense = next((out / ".shared").glob("dense-*.safetensors"))
    if fault == "began alone":
        mark = json.loads((tight / "run.json").read_text())
        mark["settings"]["follows"] = None
        (tight / "run.json").write_text(json.dumps(mark))
    elif fault == "gone":
        shared.unlink()
    else:
        for file in (shared, dense):
            file.write_bytes(file.read_bytes()[:-7])
    # As processes leave them that are killed while they write.
    left = [out / ".manifest.json.7-ab.tmp", out / ".shared" / f".{loose.name}.safetensors.7-ab.tmp"]
    for file in left:
        file.write_bytes(b"half")
    (tight / ".staging").mkdir()
    result = run(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    told = result.output.replace("\n", "")
    assert ("the checkpoint is damaged, going on without" in told) == (fault == "damaged")
    assert [entry["status"] for entry in entries(out)] == ["done", "done"]
    assert json.loads((tight / "report.json").read_text())["follows"] is None
    assert (loose / "report.json").read_bytes() == finished
    assert not any(place.exists() for place in (*left, tight / ".staging"))


def test_a_folder_where_only_something_arrived_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / ".arriving-7").mkdir(parents=True)
    monkeypatch.setattr("hwprune.variants._tasks", interrupt)
    assert run("variants", "--out", tmp_path / "out", *QUICK, "--keep", 0.5, "--resume").exit_code == 130
    assert not list((tmp_path / "out").iterdir())


def test_the_rows_of_a_device_travel_with_its_variants(tmp_path: Path) -> None:
    source = shipped_folder() / "x86-avx2-ort"
    shutil.copytree(source, tmp_path / "x86-avx2-ort")
    device = load_profile("x86-avx2-ort", tmp_path)
    grid = Grid(["lenet5"], "digits", {"x86-avx2-ort": device}, [Keep(0.5)], Recipe(1))
    parcel = pickle.dumps(grid.variants())
    shutil.rmtree(tmp_path / "x86-avx2-ort")
    (variant,) = pickle.loads(parcel)
    table = variant.profile.table
    assert table is not None
    assert len(table) == len(LatencyTable.read(source / "latency.csv", ""))


def test_a_variant_that_fails_does_not_lose_the_others(devices: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("variants", "--out", out, *QUICK, "--keep", 0.5, "--speedup", 1000)
    assert result.exit_code == 1
    assert "1 of 2 variants" in result.stderr
    status = {entry["target"]["kind"]: entry["status"] for entry in entries(out)}
    assert status == {"keep": "done", "speedup": "unreachable"}
    (failed,) = [entry for entry in entries(out) if entry["status"] == "unreachable"]
    assert "times faster than dense" in failed["reason"]
    assert failed["settings"]["seed"] == 0
    assert "times faster than dense" in (out / "report.html").read_text()
    assert f"{failed['name']} was not made: " in result.stdout
    rows = pd.read_csv(io.StringIO(run("report", out, "--csv").stdout))
    (row,) = rows[rows["target"] == "speedup"].to_dict("records")
    assert row["status"] == "unreachable"
    assert "times faster than dense" in row["reason"]
    assert pd.isna(row["latency_us_median"])


def test_a_runtime_that_is_missing_is_told_before_anything_is_trained(
    devices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    # Another test may have used it.
    monkeypatch.delitem(sys.modules, "hwprune.runtime.openvino", raising=False)
    out = tmp_path / "out"
    arguments = ["--device", "any-cpu-ort", "--device", "here-openvino", "--profiles", devices]
    result = run("variants", "--out", out, *QUICK, *arguments, "--keep", 0.5)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "openvino" in result.stderr
    assert not out.exists()


def test_the_page_links_to_every_variant(made: tuple[Path, list[object], list[str]]) -> None:
    out, _, _ = made
    assert run("report", out).exit_code == 0
    page = (out / "report.html").read_text()
    for entry in entries(out):
        assert page.count(f'href="#variant-{entry["name"]}"') == 1
        assert page.count(f'id="variant-{entry["name"]}"') == 1
        assert f'href="{entry["name"]}/report.html"' in page
        assert (out / entry["name"] / "report.html").is_file()


def test_the_table_has_every_variant_and_every_dense_network_once(
    made: tuple[Path, list[object], list[str]],
) -> None:
    out, _, _ = made
    rows = pd.read_csv(io.StringIO(run("report", out, "--csv").stdout), keep_default_na=False)
    assert sorted(rows["network"]) == ["dense"] * 2 + ["slim"] * 4
    facts = entries(out)[0]["environment"]
    assert set(rows["measured_on"]) == {facts["cpu"]}
    assert set(rows["runtime"]) == {"onnxruntime", "openvino"}
    assert set(rows[rows["network"] == "slim"]["status"]) == {"done"}


def test_the_manifest_says_from_what_every_variant_was_made(
    made: tuple[Path, list[object], list[str]], devices: Path
) -> None:
    out, _, _ = made
    loose, tight = entries(out)[:2]
    assert [entry["from"]["looser"] for entry in (loose, tight)] == [None, loose["name"]]
    for entry in entries(out):
        report = json.loads((out / entry["name"] / "report.json").read_text())
        assert entry["versions"] == report["versions"]
        assert (out / ".shared" / f"{entry['from']['dense']}.safetensors").is_file()
        settings = entry["settings"]
        assert settings["profiles"] == str(devices)
        for key in ("seed", "recipe", "fine_tune", "follows", "weights", "train_images", "penalty"):
            assert settings[key] == report[key]
        assert entry["hardware"]["isa"] == {"any-cpu-ort": "", "here-openvino": "avx512"}[entry["device"]]


def test_the_page_says_what_was_measured_where_and_how_to_make_it_again(
    made: tuple[Path, list[object], list[str]], devices: Path
) -> None:
    out, _, _ = made
    folder = VariantsFolder.read(out)
    page = render_variants(folder)
    assert f"--device any-cpu-ort --device here-openvino --profiles {devices} --data digits" in page
    assert "4 of 4 variants with a number of groups as their target keep to it." in page
    assert "as measured" not in page
    for entry in folder.record["variants"]:
        facts = entry["environment"]
        assert f"<td>{facts['runtime']} {facts['runtime_version']}</td><td>fp32</td>" in page
        entry["environment"]["isa"] = "avx2"  # as if on another machine
    page = render_variants(folder)
    line = f"here-openvino: measured on {facts['cpu']} (avx2), not on any processor (avx512): a stand-in"
    assert page.count(line) == (2 if charts.available() else 1)


def test_the_same_variant_twice_is_refused(tmp_path: Path) -> None:
    result = run("variants", "--out", tmp_path / "out", "--keep", 0.5, "--keep", 0.5)
    assert result.exit_code == 1
    assert "the same" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    result = run("variants", "--out", tmp_path)
    assert result.exit_code == 1
    assert "not ours" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(
    "theirs",
    [
        {"manifest.json": '{"name": "an extension", "manifest_version": 3}', "run.json": "{}"},
        {"manifest.json": "[]", ".shared/dense.safetensors": "weights"},
        {".shared/notes.txt": "mine"},
        {".shared/notes/run.json": '{"name": "baseline"}', ".shared/notes/best.pt": "weights"},
    ],
)
def test_a_folder_with_somebody_elses_file_of_a_marks_name_is_left_alone(
    theirs: dict[str, str], tmp_path: Path
) -> None:
    for name, content in theirs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    result = run("variants", "--out", tmp_path, *QUICK)
    assert result.exit_code == 1
    assert "not ours" in result.stderr
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.relative_to(tmp_path).as_posix(): path.read_text() for path in found} == theirs


def test_a_cluster_without_ray_names_the_extra_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run("variants", "--ray", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "pip install 'hwprune[ray]'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_cores_of_no_cluster_are_a_mistake(tmp_path: Path) -> None:
    result = run("variants", "--ray-cores", 2, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--ray-cores goes with --ray" in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "path"),
    [("--weights", "w.safetensors", "w.safetensors"), ("--data", "imagefolder:cats", "cats")],
)
def test_a_relative_path_is_refused_on_a_cluster(tmp_path: Path, option: str, value: str, path: str) -> None:
    result = run("variants", "--ray", option, value, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"(in {option}): expected an absolute one, got {path}." in result.stderr.replace("\n", "")
    assert str(Path(path).absolute()) in result.stderr.replace("\n", "")


def test_the_front_holds_what_nothing_beats() -> None:
    assert pareto_front([(1.0, 0.5), (1.0, 0.6), (2.0, 0.6), (3.0, 0.7)]) == [1, 3]


def test_the_slim_network_of_a_variant_loads(made: tuple[Path, list[object], list[str]]) -> None:
    out, _, _ = made
    model = hwprune.workloads.make_model("lenet5", in_channels=1, image_size=8, classes=10, seed=3)
    slim = hwprune.load(out / entries(out)[0]["name"] / "slim", model=model)
    assert sum(p.numel() for p in slim.parameters()) == entries(out)[0]["slim"]["params"]
