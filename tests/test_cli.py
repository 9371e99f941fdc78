"""The commands, their files and what they say when the input is bad."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import hwprune
from hwprune.cli import main
from hwprune.device.library import find_profiles, shipped_folder
from hwprune.pipeline import CORRECTIONS
from hwprune.runtime.base import get_runtime
from hwprune.runtime.timing import Timing
from hwprune.workloads import load_dataset, make_model

QUICK = ["--epochs", "2", "--batch-size", "128"]
FEW = ["--train-images", "256"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def prune(out: Path, *arguments: object) -> Result:
    return run("prune", "--out", out, *QUICK, *arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    result = prune(out)
    assert result.exit_code == 0, result.output
    return out


def report_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "report.json").read_text())
    return content


def test_the_default_run_writes_every_file(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {"model.onnx", "slim", "report.json", "report.html", "history.csv", "run.json"}
    history = pd.read_csv(finished / "history.csv")
    phases = history["phase"].tolist()
    assert phases[:4] == ["dense", "dense", "prune", "prune"]
    assert set(phases[4:]) <= set(CORRECTIONS)  # beside other work the finished network may be too slow
    assert {"loss", "accuracy", "groups_alive", "predicted_us"} <= set(history.columns)


def test_the_report_has_the_promised_keys(finished: Path) -> None:
    report = report_of(finished)
    for name in ("dense", "slim"):
        assert set(report[name]) == {"accuracy", "latency_us", "params", "macs", "file_bytes"}
        assert set(report[name]["latency_us"]) == {"median", "p10", "p90", "runs"}
    medians = {name: report[name]["latency_us"]["median"] for name in ("dense", "slim")}
    assert report["speedup"] == pytest.approx(medians["dense"] / medians["slim"], rel=1e-3)
    assert report["target"] == {"kind": "speedup", "value": 2.0}
    assert report["slim"]["macs"] < report["dense"]["macs"]
    assert report["max_abs_difference"]["torch"] <= 1e-5
    assert report["max_abs_difference"]["runtime"] <= 1e-4
    assert (finished / "model.onnx").stat().st_size == report["slim"]["file_bytes"]
    ratio = report["slim"]["params"] / report["dense"]["params"]
    assert report["slim"]["file_bytes"] / report["dense"]["file_bytes"] == pytest.approx(ratio, abs=0.1)


def test_slim_loads_and_equals_the_exported_file(finished: Path) -> None:
    dataset = load_dataset("digits")
    model = make_model("resnet8", in_channels=1, image_size=8, classes=10, seed=5)
    slim = hwprune.load(finished / "slim", model=model).eval()
    images = dataset.test_images[:16]
    profile = hwprune.load_profile("x86-avx2-ort")
    session = get_runtime("onnxruntime").open(finished / "model.onnx", profile.runtime)
    (output,) = session.run({session.inputs[0].name: images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(output, slim(images).numpy(), atol=1e-4)


def test_every_layer_carries_the_staircase_it_was_chosen_on(finished: Path) -> None:
    report = report_of(finished)
    shrinkable = [layer for layer in report["layers"] if layer["kept_whole_because"] is None]
    assert shrinkable
    for layer in shrinkable:
        latency = dict(layer["staircase"])
        assert latency[layer["width_after"]] == pytest.approx(report["predicted_us"]["slim"], abs=0.02)
        assert min(latency) <= layer["align"]
        assert max(latency) == layer["width_before"]


def test_files_can_be_read_by_others(finished: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in finished.rglob("*") if path.is_file()}
    assert len(set(modes.values())) == 1, modes


def test_single_weights_become_zeros(tmp_path: Path) -> None:
    result = prune(tmp_path / "run", "--granularity", "weight", "--keep", 0.1, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["groups"]["kept"] == int(0.1 * report["groups"]["total"])
    assert report["slim"]["params"] == report["dense"]["params"]
    refused = prune(tmp_path / "other", "--granularity", "weight", "--speedup", 2)
    assert refused.exit_code == 1
    assert "keep" in refused.stderr


def test_a_plan_says_what_is_tied_pinned_and_freed() -> None:
    result = run("plan", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    layers = {layer["name"]: layer for layer in plan["layers"]}
    assert layers["head"]["kept_whole_because"] == "network output"
    for layer in layers.values():
        for _, latency in layer["staircase"]:
            assert latency <= plan["predicted_us"] + 0.02
    shown = run("plan")
    assert "could free" in shown.output
    assert "cut together with" in shown.output


def test_a_plan_takes_oblong_images() -> None:
    result = run("plan", "lenet5:1x16x24", "--json")  # whose head is as wide as its maps are large
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["network"] == "lenet5:1x16x24"
    assert any(layer["staircase"] for layer in plan["layers"])


ANY_NETWORK = """
import torch
from torch import nn

class Between(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 4))
        self.right, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, left, right):
        return self.head(torch.special.bessel_j1(self.left(left) + self.right(right)))

def between():
    return Between(), {"left": torch.zeros(2, 5), "right": torch.zeros(2, 3)}
"""


def test_a_plan_of_any_network_has_widths_where_no_price_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "any_network.py").write_text(ANY_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    shown = run("plan", "any_network:between")
    assert shown.exit_code == 0, shown.output
    assert "nothing prices special_bessel_j1" in shown.output
    assert "so no latency is known" in shown.output
    assert "left.0: 32 channels in steps of" in shown.output
    assert "could free" not in shown.output


def test_a_plan_of_branches_says_what_each_could_free() -> None:
    result = run("plan", "--granularity", "branch", "--json")
    assert result.exit_code == 0, result.output
    layers = json.loads(result.stdout)["layers"]
    assert [layer["name"] for layer in layers] == [f"blocks.{index}" for index in range(3)]
    assert all(layer["unit"] == "branches" for layer in layers)
    without, dense = zip(*([step[1] for step in layer["staircase"]] for layer in layers), strict=True)
    assert max(without) < min(dense)


def test_keep_keeps_exactly_the_fraction_rounded_down(tmp_path: Path) -> None:
    result = prune(tmp_path / "run", "--keep", 0.3, "--json")
    assert result.exit_code == 0, result.output
    groups = json.loads(result.stdout)["groups"]
    assert groups["kept"] == int(0.3 * groups["total"])


def test_equal_runs_keep_equal_groups(tmp_path: Path) -> None:
    structures = []
    for name in ("a", "b"):
        assert prune(tmp_path / name, "--keep", 0.4).exit_code == 0
        structures.append((tmp_path / name / "slim" / "structure.json").read_text())
    assert structures[0] == structures[1]


def test_an_interrupted_run_resumes_to_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prune(tmp_path / "whole", "--keep", 0.4).exit_code == 0
    from hwprune.train.loop import Trainer

    original, calls = Trainer.run_epoch, []

    def interrupted(self: Trainer, *arguments: Any) -> Any:
        calls.append(self.epoch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, "run_epoch", interrupted)
    result = prune(tmp_path / "run", "--keep", 0.4)
    assert result.exit_code == 130
    assert "--resume" in result.stderr
    assert not (tmp_path / "run" / "report.json").exists()
    monkeypatch.setattr(Trainer, "run_epoch", original)
    assert prune(tmp_path / "run", "--keep", 0.5, "--resume").exit_code == 1  # other settings
    assert prune(tmp_path / "run", "--keep", 0.4, "--resume").exit_code == 0
    weights = [tmp_path / name / "slim" / "model.safetensors" for name in ("whole", "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert len(pd.read_csv(tmp_path / "run" / "history.csv")) == 4


def failing_model() -> nn.Module:
    class Failing(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of cheese")

    return Failing()


def two_headed_model() -> nn.Module:
    class TwoHeaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits, self.auxiliary = nn.Linear(64, 10), nn.Linear(64, 10)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.logits(images.flatten(1)), self.auxiliary(images.flatten(1))

    return TwoHeaded()


FAILURES = {
    "unknown model": (["--model", "resnet9"], "unknown model 'resnet9'"),
    "unknown data": (["--data", "digit"], "did you mean 'digits'"),
    "missing module": (["--model", "no_such_module:net"], "no_such_module"),
    "unknown device": (["--device", "x86-avx512-or"], "did you mean 'x86-avx512-ort'"),
    "target out of reach": (["--speedup", "1000"], "times faster than dense"),
    "target below one": (["--speedup", "0.5"], "at least 1"),
    "keep of nothing": (["--keep", "0"], "above 0"),
    "no epochs": (["--epochs", "0"], "at least 1"),
    "latency below zero": (["--latency-us", "-3"], "positive number of microseconds"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_bad_input_is_told_in_one_message(tmp_path: Path, name: str) -> None:
    arguments, message = FAILURES[name]
    result = prune(tmp_path / "run", *arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    assert message.lower() in result.stderr.lower()
    assert "Traceback" not in result.output
    assert not (tmp_path / "run").exists()


def callable_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.copy(__file__, folder / "user_code.py")
    monkeypatch.syspath_prepend(folder)
    return "user_code"


def test_a_model_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = callable_file(tmp_path, monkeypatch)
    result = prune(tmp_path / "run", "--model", f"{module}:failing_model")
    assert result.exit_code == 1
    assert "out of cheese" in result.stderr or "no parameters" in result.stderr


def test_a_model_that_returns_more_than_logits_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = callable_file(tmp_path, monkeypatch)
    result = prune(tmp_path / "run", "--model", f"{module}:two_headed_model")
    assert result.exit_code == 1
    assert result.output.startswith("Error: the network returns no logits for the classes of the data")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path) -> None:
    result = prune(tmp_path / "run", "--model", "lenet5", "--learning-rate", "1e20")
    assert result.exit_code == 1
    assert "the loss is not finite" in result.stderr
    assert not list((tmp_path / "run").iterdir())


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    result = prune(tmp_path)
    assert result.exit_code == 1
    assert "not ours" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_pruning_starts_from_given_weights_without_a_dense_training(tmp_path: Path) -> None:
    model = make_model("resnet8", in_channels=1, image_size=8, classes=10, seed=5)
    torch.save(model.state_dict(), tmp_path / "dense.pt")
    out = tmp_path / "run"
    # Nothing is to be learned from a network that is not trained.
    result = prune(out, "--weights", tmp_path / "dense.pt", "--keep", 0.5, "--distill", 0)
    assert result.exit_code == 0, result.output
    assert "fitted" in result.output
    assert pd.read_csv(out / "history.csv")["phase"].tolist() == ["prune", "prune"]
    report = report_of(out)
    assert report["fine_tune"]["epochs"] == 2
    assert report["distillation"] is None
    assert report["fine_tune"]["learning_rate"] < report["recipe"]["learning_rate"]
    assert report["dense"]["accuracy"] < 0.5 < report["slim"]["accuracy"]  # untrained against trained
    assert run("report", out).exit_code == 0


def test_fine_tuning_starts_from_the_trained_dense_network(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert prune(out, "--fine-tune-epochs", 1, "--keep", 0.9).exit_code == 0
    history = pd.read_csv(out / "history.csv")
    assert history["phase"].tolist() == ["dense", "dense", "prune"]
    assert history["accuracy"][2] > history["accuracy"][0]
    report = report_of(out)
    assert report["distillation"] == {"weight": 0.5, "temperature": 4.0}
    assert report["reconstruct"] == 768


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--from-scratch",), "random weights"),
        (("--fine-tune-epochs", 1, "--granularity", "weight"), "with weight"),
    ],
)
def test_there_must_be_something_to_fit_survivors_to(
    tmp_path: Path, options: tuple[object, ...], told: str
) -> None:
    result = prune(tmp_path / "run", *options, "--keep", 0.5, "--reconstruct", 64)
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [-1, 2**63])
@pytest.mark.parametrize("command", [["prune"], ["variants"], ["profile", "check", "x86-avx2-ort"]])
def test_a_seed_that_no_generator_takes_is_wrong_usage(command: list[str], seed: int) -> None:
    result = run(*command, "--seed", seed)
    assert result.exit_code == 2
    assert "--seed" in result.stderr


def test_two_targets_are_wrong_usage(tmp_path: Path) -> None:
    assert prune(tmp_path / "run", "--speedup", 2, "--keep", 0.5).exit_code == 2


def broken_profile(folder: Path, old: str, new: str) -> Path:
    shutil.copytree(shipped_folder() / "x86-avx2-ort", folder / "x86-avx2-ort")
    path = folder / "x86-avx2-ort" / "profile.toml"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))
    return folder / "x86-avx2-ort"


PROFILES = {
    "misspelt key": ("granularity", "granularty", "granularity"),
    "missing table": ('table = "latency.csv"', 'table = "none.csv"', "missing"),
    "wrong value": ("threads = 1", 'threads = "one"', "threads"),
    "not toml": ("[hardware]", "[hardware", "TOML"),
}


@pytest.mark.parametrize("name", PROFILES)
def test_a_broken_profile_is_told(tmp_path: Path, name: str) -> None:
    old, new, message = PROFILES[name]
    folder = broken_profile(tmp_path, old, new)
    result = prune(tmp_path / "run", "--device", folder)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "profile.toml" in result.stderr or "none.csv" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_table_with_a_negative_time_is_told(tmp_path: Path) -> None:
    folder = broken_profile(tmp_path, "cores = 2", "cores = 999")
    table = folder / "latency.csv"
    lines = table.read_text().splitlines()
    columns = lines[[line.startswith("op,") for line in lines].index(True)].split(",")
    cells = lines[-1].split(",")
    cells[columns.index("median_us")] = "-3.5"
    table.write_text("\n".join([*lines[:-1], ",".join(cells)]) + "\n")
    result = prune(tmp_path / "run", "--device", folder)
    assert result.exit_code == 1
    assert f"line {len(lines)}, column median_us" in result.stderr
    assert "a positive number of microseconds, got '-3.5'" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [profile.name for profile in find_profiles(shipped_folder())])
def test_a_shipped_template_says_so_and_names_the_command_that_fills_it(name: str) -> None:
    profile = hwprune.load_profile(shipped_folder() / name)
    assert profile.provenance.source == ("template" if profile.table is None else "measured")
    command = shlex.split(profile.provenance.command)
    if not command:
        # No table says what kernel positions cost, nor does ONNX Runtime tell the times of kernels on a GPU.
        assert profile.granularity == "shape" or profile.runtime.provider == "CUDAExecutionProvider"
        return
    spec = profile.runtime
    options = [f"--{key}" for key in ("precision", "threads") if f"--{key}" in command]
    said = {option: command[command.index(option) + 1] for option in options}
    assert command[:5] == ["hwprune", "profile", "build", "--runtime", spec.kind]
    assert said == {
        **({} if spec.precision == "fp32" else {"--precision": spec.precision}),
        **({} if spec.threads == 1 else {"--threads": str(spec.threads)}),
    }
    assert Path(command[command.index("--out") + 1]).name == name


def test_an_estimate_with_a_date_is_not_listed_as_measured(tmp_path: Path) -> None:
    folder = broken_profile(tmp_path, 'source = "measured"', 'source = "estimated"')
    shutil.move(folder, tmp_path / "guess")
    file = tmp_path / "guess" / "profile.toml"
    file.write_text(file.read_text().replace('"x86-avx2-ort"', '"guess"', 1))
    listed = run("devices", "--profiles", tmp_path).output
    assert "(estimated)" in listed
    assert hwprune.load_profile(tmp_path / "guess").provenance.date
    assert not any("guess" in line and "20" in line for line in listed.splitlines())


def test_devices_lists_what_is_shipped() -> None:
    result = run("devices", "--json")
    assert result.exit_code == 0
    names = {device["name"] for device in json.loads(result.stdout)["devices"]}
    assert {"x86-avx2-ort", "x86-avx512-ort"} <= names
    assert run("devices", "x86-avx512-ort").exit_code == 0
    assert "x86-avx512-ort" in run("devices").output


def test_measure_times_a_file(finished: Path) -> None:
    result = run("measure", finished / "model.onnx", "--runs", 20, "--json")
    assert result.exit_code == 0, result.output
    timing = json.loads(result.stdout)
    assert timing["runs"] == 20
    assert timing["environment"]["runtime"] == "onnxruntime"
    missing = run("measure", finished / "none.onnx")
    assert missing.exit_code == 1
    assert "no such model file" in missing.stderr


@pytest.mark.parametrize("options", [["--port", "2222"], ["--python", "python3.12"]])
def test_how_to_reach_no_machine_is_wrong_usage(tmp_path: Path, options: list[str]) -> None:
    result = run("measure", tmp_path / "net.onnx", *options)
    assert result.exit_code == 2
    assert "--host" in result.stderr


def test_a_file_that_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    result = run("measure", tmp_path / "x.onnx")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ONNX Runtime refuses")


def test_turns_on_the_device_survive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hwprune import pipeline

    original = pipeline.verify_exported

    def interrupted(*arguments: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "verify_exported", interrupted)
    assert prune(tmp_path / "run", "--speedup", 1.3).exit_code == 130
    monkeypatch.setattr(pipeline, "verify_exported", original)
    assert prune(tmp_path / "run", "--speedup", 1.3, "--resume").exit_code == 0
    turns = report_of(tmp_path / "run")["turns"]
    assert turns
    assert all(turn["measured_us"] > 0 for turn in turns)


def test_the_same_command_settles_on_the_same_groups_until_what_was_measured_is_not_borne_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwprune import kept_measurements
    from hwprune.runtime import bench

    slower = 1.0

    def by_size(paths: dict[str, Path], profile: hwprune.DeviceProfile, *_runs: object) -> dict[str, Timing]:
        us = {name: path.stat().st_size * (slower if name == "slim" else 1.0) for name, path in paths.items()}
        facts = {"precision": profile.runtime.precision, "threads": profile.runtime.threads}
        return {name: Timing(value, value, value, 9, facts) for name, value in us.items()}

    def reused(out: Path) -> set[bool]:
        return {turn["reused"] for turn in report_of(out)["turns"] if not turn["finished"]}

    monkeypatch.setattr(kept_measurements, "user_cache_path", lambda _name: tmp_path)
    monkeypatch.setattr(bench, "measure_alternately", by_size)
    first, missed, anew = (tmp_path / name for name in ("first", "missed", "anew"))
    assert prune(first, *FEW).exit_code == 0
    assert reused(first) == {False}
    slower = 1.2
    assert prune(missed, *FEW).exit_code == 0
    assert not report_of(missed)["target_met"]
    assert reused(missed) == {True}
    assert report_of(missed)["layers"] == report_of(first)["layers"]
    assert prune(anew, *FEW).exit_code == 0
    assert reused(anew) == {False}
    assert report_of(anew)["target_met"]
