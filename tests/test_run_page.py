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
from measured_here import HERE

from hwprune import charts
from hwprune.cli import main
from hwprune.report import network_rows
from hwprune.run_page import command_of, render_run, target_option
from hwprune.variant_tasks import MEASURED
from hwprune.variants_charts import accuracy_over_latency
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


def test_the_epochs_are_asked_for_only_where_one_option_gives_them_to_every_target() -> None:
    following = {**RECORD, "follows": {"kind": "speedup", "value": 1.5}}
    for before, asked in ((None, True), ({"epochs": 3}, True), ({"epochs": 15}, False)):
        assert ("--fine-tune-epochs 3" in command_of({**following, "fine_tune_before": before})) is asked
        assert "--from-scratch" not in command_of({**following, "fine_tune_before": before})


def test_the_granularity_is_said_whichever_it_is() -> None:
    assert "--granularity channel" in command_of(RECORD)
    assert "--granularity block" in command_of({**RECORD, "granularity": "block"})


def test_the_page_says_for_how_long_either_network_was_trained() -> None:
    assert "10 epochs dense and 3 pruned" in render_run(RECORD, [])
    assert "10 epochs dense and 10 pruned" in render_run({**RECORD, "fine_tune": None}, [])
    assert "0 epochs dense and 3 pruned" in render_run({**RECORD, "weights": "w.pt"}, [])


def test_what_sums_of_rows_were_corrected_by_is_told() -> None:
    fitted = {"factor": 0.826, "overhead_us": 8.8, "held_mib": None, "spilled_us": 0.0}
    page = render_run({**RECORD, "correction": fitted}, [])
    assert "0.826 times the sum of the rows, and 8.8 us." in page
    page = render_run({**RECORD, "correction": {**fitted, "held_mib": 1.19, "spilled_us": 47.4}}, [])
    assert "and 47.4 us for each MiB of weights (at four bytes each) beyond 1.19, which" in page
    assert "the sum of the rows" not in render_run({**RECORD, "correction": None}, [])


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
    assert "--profiles" not in words
    assert "--profiles 'my boards'" in command_of({**record, "profiles": "my boards"})
    assert words[words.index("--data") + 1] == "imagefolder:my images"
    assert words[words.index("--device") + 1] == "my devices/pi"
    assert words[words.index("--weights") + 1] == "my net.pt"


def variants(folder: Path, *changes: dict[str, Any]) -> VariantsFolder:
    """A folder of variants, each the same run but for some changes of its entry."""
    entries = []
    for number, changed in enumerate(changes):
        settings = {**RECORD, "profiles": None, "int8": False, **changed.get("settings", {})}
        name = f"v{number}"
        entry = {**RECORD, "name": name, "status": "done", "environment": HERE, **changed}
        if entry["status"] in ("failed", "unreachable", "pending"):
            entry = {key: value for key, value in entry.items() if key not in MEASURED or key in changed}
        entries.append({**entry, "settings": settings})
        (folder / name).mkdir(parents=True)
        (folder / name / "report.json").write_text(json.dumps(RECORD))
        (folder / name / "history.csv").write_text("phase,epoch,loss,accuracy,groups_alive,predicted_us\n")
    return VariantsFolder(folder, {"variants": entries, "versions": {}})


def test_one_variant_on_8_bits_is_enough_for_the_option(tmp_path: Path) -> None:
    on_8_bits = {"accuracy_fp32": 0.5, "latency_us_fp32": {"median": 2.0}, "speedup_over_slim": 1.0}
    changes = [{"settings": {"int8": False}}, {"int8": {**NETWORK, **on_8_bits}, "settings": {"int8": True}}]
    assert "--int8" in render_variants(variants(tmp_path, *changes))
    assert "--int8" not in render_variants(variants(tmp_path / "plain", {}, {}))


@pytest.mark.parametrize(
    ("epochs", "option"),
    [((6, 3), None), ((4, 4), "--fine-tune-epochs 4"), ((None, None), "--from-scratch")],
)
def test_the_command_asks_for_a_fine_tuning_that_is_not_the_default(
    tmp_path: Path, epochs: tuple[int | None, ...], option: str | None
) -> None:
    changes = [{"settings": {"fine_tune": each and {"epochs": each}}} for each in epochs]
    page = render_variants(variants(tmp_path, *changes))
    for other in ("--fine-tune-epochs", "--from-scratch"):
        assert (other in page) == (option is not None and option.startswith(other))
    assert option is None or option in page


@pytest.mark.parametrize(
    ("kind", "value", "option"),
    [
        ("speedup", 2.0, "--speedup 2"),
        ("latency_us", 1234.5678, "--latency-us 1234.5678"),
        ("groups", 1234567, "--groups 1234567"),
        ("keep", 0.3, "--keep 0.3"),
    ],
)
def test_targets_are_told_with_all_their_digits(kind: str, value: float, option: str) -> None:
    assert target_option({"kind": kind, "value": value}) == option


def test_the_speed_up_on_8_bits_is_of_one_run() -> None:
    timed = {"latency_us": {"median": 2.0}, "latency_us_fp32": {"median": 4.0}}
    int8 = {**NETWORK, **timed, "accuracy": 0.5, "speedup_over_slim": 2.0}
    record = {**RECORD, "environment": HERE}
    rows = network_rows({**record, "int8": {**int8, "dense": {"latency_us_fp32": {"median": 9.0}}}})
    assert rows[-1]["network"] == "slim-int8"
    assert rows[-1]["speedup"] == 4.5  # not the product with what another run told
    older = network_rows({**record, "int8": int8})
    assert older[-1]["speedup"] == pytest.approx(2.0 * RECORD["speedup"])


@pytest.mark.parametrize("second", ["channel", "weight"])
def test_variants_name_8_bits_and_the_granularity_that_all_have(second: str, tmp_path: Path) -> None:
    on_8_bits = {"accuracy_fp32": 0.5, "latency_us_fp32": {"median": 2.0}, "speedup_over_slim": 1.0}
    changes = [
        {
            "device": device,
            "int8": {**NETWORK, **on_8_bits},
            "settings": {"device": f"my devices/{device}", "granularity": granularity, "int8": True},
        }
        for device, granularity in (("a", "channel"), ("b", second))
    ]
    page = render_variants(variants(tmp_path, *changes))
    assert "--device &#x27;my devices/a&#x27; --device &#x27;my devices/b&#x27; --data" in page
    assert "--int8" in page
    assert ("--granularity channel" in page) == (second == "channel")


def test_every_status_is_counted_by_what_was_asked_for(tmp_path: Path) -> None:
    folder = variants(
        tmp_path,
        {},
        {
            "status": "missed",
            "reason": "the turns were used up",
            "target": {"kind": "latency_us", "value": 9.0},
        },
        {"status": "failed", "error": "no such device", "target": {"kind": "speedup", "value": 9.0}},
        {"target": {"kind": "keep", "value": 0.5}},
        {"status": "pending", "target": {"kind": "keep", "value": 0.3}},
    )
    page = render_variants(folder)
    assert "1 of 3 variants with a latency as their target meet it, as measured." in page
    assert "1 of 2 variants with a number of groups as their target keep to it." in page
    assert "4 of 5 made" in page
    assert "<td>v1</td><td>MISSED</td><td>the turns were used up</td>" in page
    assert "<td>v2</td><td>failed</td><td>no such device</td>" in page
    for label in ("2x", "9 us", "9x", "keep 0.5", "keep 0.3"):
        assert f"<td>{label}</td>" in page
    rows = folder.networks()
    assert list(rows["status"].fillna("")) == ["", "done", "missed", "failed", "done", "pending"]
    assert list(rows["reason"].fillna(""))[2:4] == ["the turns were used up", "no such device"]


def test_what_was_measured_and_lacks_something_else_counts_by_what_was_measured(tmp_path: Path) -> None:
    lacking = {**RECORD, "status": "failed", "error": "8 bits are refused"}
    folder = variants(tmp_path, {}, lacking, {**lacking, "reason": "too slow by a hair"})
    page = render_variants(folder)
    assert "2 of 3 variants with a latency as their target meet it, as measured." in page
    assert "<td>v2</td><td>failed</td><td>8 bits are refused; too slow by a hair</td>" in page
    assert list(folder.networks()["latency_us_median"].isna()) == [False] * 4


def test_a_manifest_of_an_older_version_still_makes_a_page(tmp_path: Path) -> None:
    folder = variants(tmp_path, {"status": "missed"})
    del folder.record["variants"][0]["settings"]
    page = render_variants(folder)
    assert "measured speed-up 1.000 where 2 was asked for" in page
    assert "hwprune variants" not in page


def test_one_dense_network_of_a_model_is_drawn_and_in_the_front(tmp_path: Path) -> None:
    if not charts.available():
        pytest.skip("needs matplotlib")
    drawn = list[charts.Line]()
    slower = {**NETWORK, "accuracy": 0.4, "latency_us": {"median": 1.0}}
    better = {**NETWORK, "accuracy": 0.9}  # another timing of the dense network, which is not drawn
    entries = [{**RECORD, "environment": HERE, "slim": slower}]
    entries.append({**entries[0], "dense": better})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "line_chart", lambda lines, **_options: str(drawn.extend(lines)))
        accuracy_over_latency(entries, "a")
    front, networks = drawn
    assert networks.labels == ["dense", "2x", "2x"]
    assert set(zip(front.x, front.y, strict=True)) <= set(zip(networks.x, networks.y, strict=True))
    assert max(front.y) == 50.0


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


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"fine_tune": None}, "chosen while the penalty envelope pulled"),
        ({"penalty": "halo"}, "chosen while the penalty halo pulled"),
        ({"granularity": "weight"}, "chosen while the penalty envelope pulled"),
        ({"reconstruct": 768}, "those without which the layers that read them lose least"),
        ({}, "those with the smallest norms"),
        (
            {"penalty": "magnitude", "reconstruct": 768},
            "chosen by the penalty magnitude, those with the smallest",
        ),
        (
            {"penalty": "hard-threshold", "fine_tune": None},
            "chosen by the penalty hard-threshold, those with",
        ),
    ],
)
def test_the_page_tells_how_groups_were_chosen(changed: dict[str, Any], told: str) -> None:
    assert told in render_run({**RECORD, **changed}, [])
