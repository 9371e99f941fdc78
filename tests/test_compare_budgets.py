"""The comparison of one run at several targets with runs of their own: what it reads and counts."""

import json
import subprocess
from contextlib import nullcontext

import click
import pytest
import torch
from safetensors.torch import load_file

from hwprune.train.checkpoint import save_checkpoint


@pytest.fixture
def tool(load_tool):
    return load_tool("compare_budgets")


def network(folder, accuracy, target, seconds, *, met=False):
    """A folder of one network, of what the tool reads: 20 seconds dense, and two epochs of ``seconds``."""
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text(
        f"phase,seconds\ndense,10\ndense,10\nprune,{seconds}\nprune,{seconds}\n"
    )
    report = {
        "slim": {"accuracy": accuracy},
        "speedup": target + 0.02,
        "target_met": met,
        "seconds": 2 * seconds + 4,
        "fine_tune": {"epochs": 2},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def finished(folder, accuracies, seconds):
    """A folder as a run leaves it whose networks miss their targets, of what the tool reads."""
    variants = []
    for target, accuracy in accuracies.items():
        name = f"net-{target:g}"
        network(folder / name, accuracy, target, seconds)
        variants.append({"name": name, "target": {"value": target}, "status": "missed"})
    (folder / "manifest.json").write_text(json.dumps({"variants": variants}))
    return folder


def test_the_dense_training_counts_once_and_differences_are_per_seed(tool, tmp_path):
    sides = []
    for seed in range(2):
        one = finished(tmp_path / f"{seed}a", {1.5: 0.90, 3.0: 0.85 + 0.01 * seed}, 3)
        own = finished(tmp_path / f"{seed}b", {1.5: 0.91, 3.0: 0.85}, 10)
        alone = {
            1.5: network(tmp_path / f"{seed}c", 0.90, 1.5, 4, met=True),
            3.0: network(tmp_path / f"{seed}d", 0.84, 3.0, 4),
        }
        one, own = (tool.read_side(tool.folders_of(folder)) for folder in (one, own))
        sides.append({tool.ONE: one, tool.OWN: tool.read_side(alone, one.dense_seconds), tool.SCRATCH: own})
    page = "\n".join(tool.lines_of(sides))
    rows = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in page.splitlines() if "|" in line
    }
    assert rows["1.5"][:3] == ["90.00 (0.00), 1.52", "90.00 (0.00), 1.52", "91.00 (0.00), 1.52"]
    assert rows["1.5"][3:] == ["+0.00 (0.00)", "-1.00 (0.00) |"]
    assert rows["3"][3:] == ["+1.50 (0.71)", "+0.50 (0.71) |"]
    assert "4 of 4 (one run), 2 of 4 (own runs), 4 of 4 (from scratch)" in page
    assert "at each target: met." in page
    assert "one run of its own: met (1.14 in epochs' seconds, 1.25 in wall seconds)." in page
    costs = [cells for title, cells in rows.items() if "target" in title and "hwprune" in title]
    # 20 s dense and twice 6 s of epochs or 10 s of the clock, against 20 s dense and 8 s or 12 s
    assert costs == [["1.14 (1.14 to 1.14)", "1.25 (1.25 to 1.25) |"]]
    # ... against 20 s dense and twice 8 s or 12 s
    assert rows["all targets, each a run of its own, the dense training once"] == [
        "0.89 (0.89 to 0.89)",
        "0.91 (0.91 to 0.91) |",
    ]


def test_two_sides_are_enough_and_what_is_missed_is_said(tool):
    def side(accuracy, seconds):
        return tool.Side({2.0: accuracy}, {2.0: 2.1}, frozenset(), 10.0, {2.0: seconds}, {2.0: seconds})

    page = "\n".join(tool.lines_of([{tool.ONE: side(80.0, 9.0), tool.OWN: side(80.4, 3.0)}]))
    assert "scratch" not in page
    assert "at each target: missed (0.40 at 2)." in page
    assert "one run of its own: missed (1.46 in epochs' seconds, 1.46 in wall seconds)." in page


def test_own_runs_start_from_the_dense_weights_of_the_one_run(tool, tmp_path, monkeypatch):
    chain, commands = finished(tmp_path / "0-one-run", {1.5: 0.9, 3.0: 0.8}, 3), []
    weights = {"layer.weight": torch.arange(6.0).reshape(2, 3)}
    (chain / ".shared").mkdir()
    save_checkpoint(
        chain / ".shared" / "dense-net-12.safetensors", {"trainer": {"model": weights}, "history": []}
    )

    def command(words, **_options):
        commands.append(words)
        network(tmp_path / "alone" / "3", 0.8, 3.0, 3)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(tool.subprocess, "run", command)
    for _ in range(2):  # the second time it is complete
        tool.run_alone(tmp_path / "alone" / "3", ["--speedup", "3"], chain)
    (words,) = commands
    assert "--fine-tune-epochs" not in words
    given = load_file(words[words.index("--weights") + 1])
    assert torch.equal(given["layer.weight"], weights["layer.weight"])
    assert "--resume" not in words


@pytest.mark.parametrize(
    ("targets", "last", "refused"),
    [(2, "missed", False), (3, "missed", True), (2, "failed", True), (2, "pending", True)],
)
def test_a_missed_target_is_a_result_and_a_missing_network_is_not(
    tool, tmp_path, monkeypatch, targets, last, refused
):
    def command(*_arguments, **_options):
        manifest = finished(tmp_path / "run", {1.5: 0.9, 3.0: 0.8}, 3) / "manifest.json"
        variants = json.loads(manifest.read_text())["variants"]
        variants[-1]["status"] = last
        manifest.write_text(json.dumps({"variants": variants}))
        return subprocess.CompletedProcess([], 1)

    monkeypatch.setattr(tool.subprocess, "run", command)
    with pytest.raises(click.ClickException) if refused else nullcontext():
        tool.run(tmp_path / "run", ["--speedup", "1"] * targets)


def test_a_command_that_refuses_its_folder_has_failed(tool, tmp_path, monkeypatch):
    folder = finished(tmp_path / "run", {1.5: 0.9}, 3)
    monkeypatch.setattr(tool.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    with pytest.raises(click.ClickException):
        tool.run(folder, ["--speedup", "1.5"])
