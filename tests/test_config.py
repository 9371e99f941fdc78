"""Options from a file: taken, overridden, refused."""

import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hwprune.cli import main
from hwprune.targets import Keep, Speedup
from hwprune.variants import Grid

WRONG = {
    "epochz: 3": "no such option",
    "epochs: [1, 2]": "expected one value, got [1, 2]",
    "epochs: some": "'some' is not a valid integer",
    "model: {a: 1}": "does not fit the option",
    "- 1": "holds no options",
    "a: b: c": "is not YAML",
    "keep: [[0.5]]": "does not fit the option",
}


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[Grid]:
    """The grids that would have been made."""
    made: list[Grid] = []

    def record(grid: Grid, out: Path, **_rest: Any) -> None:
        made.append(grid)

    for name in ("prune", "variants"):  # the commands hide the modules of the same names
        monkeypatch.setattr(sys.modules[f"hwprune.cli.{name}"], "run_grid", record)
    return made


def test_a_file_says_what_options_say_and_the_command_line_wins(grids: list[Grid], tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("model: [resnet8, lenet5]\nkeep: [0.9, 0.5]\nspeedup: 2\nepochs: 3\nbatch-size: 64\n")
    result = CliRunner().invoke(main, ["variants", "--config", str(path), "--epochs", "4", "--keep", "0.7"])
    assert result.exit_code == 0, result.output
    (grid,) = grids
    assert grid.models == ("resnet8", "lenet5")
    assert grid.targets == [Speedup(2.0), Keep(0.7)]
    assert (grid.recipe.epochs, grid.recipe.batch_size) == (4, 64)


def test_prune_reads_a_file_too(grids: list[Grid], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("keep: [0.9, 0.5]\n")
    assert CliRunner().invoke(main, ["prune", "--config", str(path)]).exit_code == 0
    assert grids[0].targets == [Keep(0.9), Keep(0.5)]


@pytest.mark.parametrize(
    ("content", "address"),
    [("ray: true", None), ("ray: any", None), ("ray: HOST:6379", "HOST:6379"), ("ray: false", "no cluster")],
)
def test_a_cluster_of_no_address_is_any_one(
    content: str, address: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    executors: list[Any] = []
    monkeypatch.setattr(
        sys.modules["hwprune.cli.variants"],
        "run_grid",
        lambda *_arguments, executor, **_rest: executors.append(executor),
    )
    (tmp_path / "grid.yaml").write_text(content)
    result = CliRunner().invoke(main, ["variants", "--config", str(tmp_path / "grid.yaml")])
    assert result.exit_code == 0, result.output
    (executor,) = executors
    assert ("no cluster" if executor is None else executor.address) == address


@pytest.mark.parametrize("content", WRONG)
def test_a_wrong_file_is_wrong_usage(content: str, grids: list[Grid], tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    result = CliRunner().invoke(main, ["variants", "--config", str(path)])
    assert result.exit_code == 2
    assert WRONG[content] in " ".join(result.stderr.split())
    assert not grids


def test_an_absent_file_is_wrong_usage(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["variants", "--config", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    assert "cannot be read" in result.stderr
