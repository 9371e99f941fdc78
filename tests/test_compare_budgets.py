"""The comparison of one run at several targets with runs of their own: what it reads and counts."""

import importlib.util
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import click
import pytest

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    spec = importlib.util.spec_from_file_location("compare_budgets", TOOLS / "compare_budgets.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_budgets", module)
    spec.loader.exec_module(module)
    return module


def finished(folder, accuracies, seconds):
    """A folder as a run leaves it whose networks miss their targets, of what the tool reads."""
    variants = []
    for target, accuracy in accuracies.items():
        name = f"net-{target:g}"
        (folder / name).mkdir(parents=True)
        (folder / name / "history.csv").write_text(
            f"phase,seconds\ndense,10\ndense,10\nprune,{seconds}\nprune,{seconds}\n"
        )
        variants.append(
            {
                "name": name,
                "target": {"value": target},
                "status": "missed",
                "slim": {"accuracy": accuracy},
                "speedup": target + 0.02,
            }
        )
    (folder / "manifest.json").write_text(json.dumps({"variants": variants}))
    return folder


def test_the_dense_training_counts_once_and_differences_are_per_seed(tool, tmp_path):
    sides = []
    for seed in range(2):
        one = finished(tmp_path / f"{seed}a", {1.5: 0.90, 3.0: 0.85 + 0.01 * seed}, 3)
        own = finished(tmp_path / f"{seed}b", {1.5: 0.91, 3.0: 0.85}, 10)
        sides.append({"one run": tool.read_side(one), "own runs": tool.read_side(own)})
    page = "\n".join(tool.lines_of(sides))
    assert "| 1.5 | 90.00 (0.00), 1.52 | 91.00 (0.00), 1.52 | -1.00 (0.00) |" in page
    assert "| 3 | 85.50 (0.71), 3.02 | 85.00 (0.00), 3.02 | +0.50 (0.71) |" in page
    # 20 s dense and twice 6 s, against 20 s dense and 20 s
    assert "take 0.80 times the epochs' seconds" in page


@pytest.mark.parametrize(("targets", "refused"), [(2, False), (3, True)])
def test_a_missed_target_is_a_result_and_a_missing_network_is_not(
    tool, tmp_path, monkeypatch, targets, refused
):
    def command(*_arguments, **_options):
        finished(tmp_path / "run", {1.5: 0.9, 3.0: 0.8}, 3)
        return subprocess.CompletedProcess([], 1)

    monkeypatch.setattr(tool.subprocess, "run", command)
    with pytest.raises(click.ClickException) if refused else nullcontext():
        tool.run(tmp_path / "run", ["--speedup", "1"] * targets)


def test_a_command_that_refuses_its_folder_has_failed(tool, tmp_path, monkeypatch):
    folder = finished(tmp_path / "run", {1.5: 0.9}, 3)
    monkeypatch.setattr(tool.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    with pytest.raises(click.ClickException):
        tool.run(folder, ["--speedup", "1.5"])
