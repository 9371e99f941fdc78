"""What users pass that nobody planned for: callables, files, folders and options of odd kinds."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from hwprune.cli import main
from hwprune.device.library import load_profile
from hwprune.errors import WorkloadError
from hwprune.settings import Settings
from hwprune.targets import Keep
from hwprune.train.loop import Recipe
from hwprune.workloads import load_dataset, make_model, read_weights

QUICK = ("--train-images", 256, "--epochs", 2, "--keep", 0.5, "--device", "any-cpu-ort", "--batch-size", 64)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


CALLABLES = """
import torch
from torch import nn
from hwprune.workloads import Dataset, load_dataset

def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 64, 10),
    )

SAME = network()

def same():
    return SAME

def talkative():
    print("building my network")
    return network()

def constant():
    return nn.Sequential(nn.Flatten(), nn.Softmax(1))

def changed(augment=None, classes=10, wanted=False):
    data = load_dataset("digits").first(256)
    images = data.train_images.clone().requires_grad_(wanted)
    return Dataset("mine", images, data.train_labels, data.test_images, data.test_labels, classes, augment)

def nothing():
    return changed(augment=lambda images, generator: None)

def whole():
    return changed(augment=lambda images, generator: (images * 255).to(torch.uint8))

def fraction():
    return changed(classes=10.5)

def wanted():
    return changed(wanted=True)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"mine_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(CALLABLES)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_callable_that_returns_the_same_network_twice_leaves_the_dense_one_dense(
    mine: str, tmp_path: Path
) -> None:
    reports: dict[str, Any] = {}
    for name in ("same", "network"):
        out = tmp_path / name
        outcome = run("prune", "--model", f"{mine}:{name}", "--data", "digits", *QUICK, "--out", out)
        assert outcome.exit_code == 0, outcome.output
        reports[name] = json.loads((out / "report.json").read_text())
        history = pd.read_csv(out / "history.csv")
        trained = history[history["phase"] == "dense"]["accuracy"].iloc[-1]
        assert reports[name]["dense"]["accuracy"] == pytest.approx(trained, abs=1e-6)
    for network in ("dense", "slim"):
        assert reports["same"][network]["accuracy"] == reports["network"][network]["accuracy"]
        assert reports["same"][network]["params"] == reports["network"][network]["params"]


def test_what_a_callable_prints_does_not_stand_beside_the_answer(mine: str) -> None:
    outcome = run("plan", f"{mine}:talkative:1x8x8", "--device", "any-cpu-ort", "--json")
    assert outcome.exit_code == 0, outcome.output
    assert isinstance(json.loads(outcome.stdout), dict)
    assert "building my network" in outcome.stderr
    spoken = run("plan", f"{mine}:talkative:1x8x8", "--device", "any-cpu-ort")
    assert "building my network" in spoken.stdout


@pytest.mark.parametrize(
    ("model", "data", "told"),
    [
        ("{}:constant", "digits", "the network has nothing to train"),
        ("lenet5", "{}:nothing", "augmentation returned something else.*NoneType"),
        ("lenet5", "{}:whole", r"augmentation returned something else.*float32.*uint8"),
        ("lenet5", "{}:fraction", r"not enough classes.*whole number, at least 2.*10\.5"),
        ("lenet5", "{}:wanted", r"images that gradients are wanted for.*images\.detach"),
    ],
)
def test_odd_networks_and_data_are_told(mine: str, tmp_path: Path, model: str, data: str, told: str) -> None:
    outcome = run(
        "prune", "--model", model.format(mine), "--data", data.format(mine), *QUICK, "--out", tmp_path / "out"
    )
    assert outcome.exit_code == 1
    assert outcome.stderr.count("Error:") == 1
    assert re.search(told, outcome.stderr), outcome.stderr
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_single_class_is_nothing_to_tell_apart() -> None:
    data = load_dataset("digits").first(64)
    with pytest.raises(WorkloadError, match="not enough classes"):
        replace(data, classes=1, train_labels=data.train_labels * 0, test_labels=data.test_labels * 0)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("hello world"),
        lambda path: torch.save({0: torch.zeros(1)}, path),
        lambda path: path.write_bytes(pickle.dumps({"a": 1})),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save([1, 2], path),
    ],
)
def test_files_that_hold_no_weights_are_told(write: Callable[[Path], Any], tmp_path: Path) -> None:
    write(tmp_path / "weights.pt")
    with pytest.raises(WorkloadError, match="weights"):
        read_weights(tmp_path / "weights.pt")


@pytest.mark.parametrize("content", ["out: 2026-02-30", 'out: "a\\0b"', "epochs: true", "epochs: [1, true]"])
def test_values_that_no_option_takes_are_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "options.yaml").write_text(content)
    outcome = run("prune", "--config", tmp_path / "options.yaml", "--keep", 0.5, "--out", tmp_path / "out")
    assert outcome.exit_code == 2
    assert outcome.stderr.count("Error:") == 1
    assert "options.yaml" in outcome.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["devices", "any-cpu-ort"],
        ["plan", "lenet5", "--device", "any-cpu-ort"],
        ["prune", "--keep", "0.5", "--device", "any-cpu-ort"],
    ],
)
def test_a_folder_of_profiles_that_is_not_there_is_told(tmp_path: Path, command: list[str]) -> None:
    outcome = run(*command, "--profiles", tmp_path / "nowhere")
    assert outcome.exit_code == 1
    assert "no such folder of profiles" in outcome.stderr


def test_a_device_without_a_name_is_none(tmp_path: Path) -> None:
    outcome = run("prune", "--keep", 0.5, "--device", "", "--out", tmp_path / "out")
    assert outcome.exit_code == 1
    assert "unknown device ''" in outcome.stderr


def test_a_link_that_leads_nowhere_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    outcome = run("prune", *QUICK, "--out", tmp_path / "link")
    assert outcome.exit_code == 1
    assert "a link that leads nowhere" in outcome.stderr
    assert "measuring" not in outcome.output


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["prune", "--keep", "0.5", "--from-scratch", "--temperature", "2"], "--temperature"),
        (["prune", "--keep", "0.5", "--distill", "0", "--temperature", "2"], "--temperature"),
        (["export", ".", "--format", "onnx", "--calibration-images", "5"], "--calibration-images"),
    ],
)
def test_options_that_nothing_would_use_are_wrong_usage(
    command: list[str], told: str, tmp_path: Path
) -> None:
    outcome = run(*command, "--out", tmp_path / "out")
    assert outcome.exit_code == 2
    assert told in outcome.stderr


def settings(weights: Path | None = None) -> Settings:
    return Settings(
        "lenet5",
        "digits",
        "mine",
        Keep(0.5),
        Recipe(1, 64),
        weights=None if weights is None else str(weights),
    )


def test_files_that_go_by_the_same_names_are_other_settings(tmp_path: Path) -> None:
    profile = load_profile("any-cpu-ort")
    other = profile.model_copy(
        update={
            "rule": tuple(
                rule.model_copy(update={"align": 2, "divisor": 1, "period": None}) for rule in profile.rule
            )
        }
    )
    assert settings().run_record(profile) == settings().run_record(load_profile("any-cpu-ort"))
    assert settings().run_record(profile) != settings().run_record(other)
    elsewhere = replace(settings(), profiles="elsewhere")  # the profile itself counts, not where it lies
    assert elsewhere.as_record() != settings().as_record()
    assert elsewhere.run_record(profile) == settings().run_record(profile)
    assert elsewhere.masked_record(Keep(0.5)) == settings().masked_record(Keep(0.5))
    weights, records = tmp_path / "weights.pt", []
    for seed in (0, 1, 0):
        model: nn.Module = make_model("lenet5", in_channels=1, image_size=8, classes=10, seed=seed)
        torch.save(model.state_dict(), weights)
        records.append(settings(weights).run_record(profile))
    assert records[0] == records[2] != records[1]


def test_a_run_is_not_resumed_with_a_profile_that_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "profiles" / "mine"
    folder.mkdir(parents=True)
    text = (load_profile("any-cpu-ort").folder / "profile.toml").read_text()  # type: ignore[operator]
    text = text.replace('name = "any-cpu-ort"', 'name = "mine"')
    (folder / "profile.toml").write_text(text)
    options = (
        "prune",
        *QUICK[:-4],
        "--device",
        "mine",
        "--profiles",
        folder.parent,
        "--out",
        tmp_path / "out",
    )

    def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("hwprune.compressor.Compressor.finish", stop)
        assert run(*options).exit_code == 130
    (folder / "profile.toml").write_text(text.replace("align = 1", "align = 2"))
    outcome = run(*options, "--resume")
    assert outcome.exit_code == 1
    assert "started with other settings" in outcome.stderr
    assert "profile_sha256" in outcome.stderr
    (folder / "profile.toml").write_text(text)
    assert run(*options, "--resume").exit_code == 0
