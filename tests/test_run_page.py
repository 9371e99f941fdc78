"""The commands that the pages give to repeat what they show."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from hwprune.cli import main
from hwprune.run_page import command_of, render_run
from hwprune.variants_page import VariantsFolder, render_variants

NETWORK = {
    "accuracy": 0.5,
    "latency_us": {"median": 2.0, "p10": 1.0, "p90": 3.0},
    "params": 1,
    "macs": 1,
    "file_bytes": 1,
}
RECORD: dict[str, Any] = {
    "model": "lenet5",
    "data": "digits",
    "device": "a",
    "target": {"kind": "speedup", "value": 2.0},
    "granularity": "channel",
    "penalty": "envelope",
    "epochs": 10,
    "seed": 0,
    "train_images": None,
    "recipe": {"batch_size": 32, "learning_rate": 0.1},
    "fine_tune": {"epochs": 3},
    "dense": NETWORK,
    "slim": NETWORK,
    "predicted_us": {"dense": 2.0, "slim": 2.0},
    "prediction_error": {"dense": 0.0, "slim": 0.0},
    "groups": {"kept": 1, "total": 2},
    "speedup": 1.0,
    "target_met": False,
    "turns": [],
    "layers": [],
    "max_abs_difference": {"torch": 0.0, "runtime": 0.0},
    "environment": {},
    "versions": {},
}


def test_the_granularity_is_said_whichever_it_is() -> None:
    assert "--granularity channel" in command_of(RECORD)
    assert "--granularity block" in command_of({**RECORD, "granularity": "block"})


def test_the_page_says_for_how_long_either_network_was_trained() -> None:
    assert "10 epochs dense and 3 pruned" in render_run(RECORD, [])
    assert "10 epochs dense and 10 pruned" in render_run({**RECORD, "fine_tune": None}, [])
    assert "0 epochs dense and 3 pruned" in render_run({**RECORD, "weights": "w.pt"}, [])


def test_a_network_much_faster_than_asked_for_is_told_beside_the_turns() -> None:
    assert "as was asked for" not in render_run(RECORD, [])
    wasteful = {"limit_us": 1.0, "predicted_us": 1.0, "measured_us": 1.0, "allowed_us": 2.0}
    groups = {**RECORD["groups"], "budget": 1.0}
    page = render_run({**RECORD, "speedup": 3.0, "turns": [wasteful], "groups": groups}, [])
    assert "The slim network is 1.50 times as fast as was asked for: what was left when" in page


def test_a_run_that_started_from_a_looser_one_is_repeated_with_both_targets() -> None:
    assert "--speedup 2 --epochs" in command_of(RECORD)
    record = {**RECORD, "follows": {"kind": "speedup", "value": 1.5}}
    assert "--speedup 1.5 --speedup 2 --epochs" in command_of(record)
    assert "started from the pruned one at --speedup 1.5" in render_run(record, [])
    assert "started from the pruned one" not in render_run({**RECORD, "follows": None}, [])


def test_paths_with_spaces_can_be_pasted() -> None:
    record = {**RECORD, "data": "imagefolder:my images", "device": "my devices/pi", "weights": "my net.pt"}
    words = shlex.split(command_of(record))
    assert words[words.index("--data") + 1] == "imagefolder:my images"
    assert words[words.index("--device") + 1] == "my devices/pi"
    assert words[words.index("--weights") + 1] == "my net.pt"


@pytest.mark.parametrize("second", ["channel", "weight"])
def test_variants_name_8_bits_and_the_granularity_that_all_have(second: str, tmp_path: Path) -> None:
    entries = []
    for device, granularity in (("a", "channel"), ("b", second)):
        entry = {**RECORD, "name": device, "device": device, "granularity": granularity, "status": "done"}
        on_8_bits = {"accuracy_fp32": 0.5, "latency_us_fp32": {"median": 2.0}, "speedup_over_slim": 1.0}
        entries.append({**entry, "int8": {**NETWORK, **on_8_bits}})
        (tmp_path / device).mkdir()
        (tmp_path / device / "report.json").write_text(json.dumps(entry))
        (tmp_path / device / "history.csv").write_text(
            "phase,epoch,loss,accuracy,groups_alive,predicted_us\n"
        )
    page = render_variants(VariantsFolder(tmp_path, {"variants": entries, "versions": {}}))
    assert "--int8" in page
    assert ("--granularity channel" in page) == (second == "channel")


def test_a_missed_target_is_told_with_the_reason_on_the_page_and_in_the_closing_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    turn = {"limit_us": 1.0, "predicted_us": 1.0, "measured_us": 2.5, "allowed_us": 2.0}
    record = {**RECORD, "turns": [turn], "groups": {**RECORD["groups"], "budget": 1.0}}
    told = "the target is missed: measured speed-up 1.000 where 2 was asked for; the only network tried"
    assert told.capitalize() in render_run(record, [])
    report = SimpleNamespace(as_record=lambda: {**record, "environment": {"precision": "fp32"}})
    module = sys.modules["hwprune.cli.prune"]  # the command has taken its name in the package
    monkeypatch.setattr(module, "compress", lambda *_arguments, **_options: report)
    result = CliRunner().invoke(main, ["prune", "--out", str(tmp_path / "out")])
    assert f"warning: {told}" in " ".join(result.stdout.split())
