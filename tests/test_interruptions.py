"""Ctrl-C where nothing has been kept yet: exit 130, and what is told works as it is told."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hwprune.cli import main
from hwprune.output_folder import MARKER, OutputFolder

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--model", "lenet5", "--keep", "0.5", "--epochs", "1", "--train-images", "128"]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def interrupt(*_arguments: object, **_options: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("empty", [True, False])
def test_a_run_interrupted_while_it_measured_begins_anew_with_what_it_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    arguments = ["prune", *QUICK, "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["hwprune", *arguments])
    with monkeypatch.context() as patched:
        patched.setattr("hwprune.pipeline.Compressor", interrupt)
        interrupted = run(*arguments)
    assert interrupted.exit_code == 130
    assert interrupted.stderr.splitlines()[-1].endswith("--resume")
    assert not (tmp_path / "run").exists()
    if empty:
        (tmp_path / "run").mkdir()
    resumed = run(*arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert f"nothing to resume in {tmp_path / 'run'}: starting anew" in resumed.output.replace("\n", "")


def test_who_asks_to_resume_nothing_still_gets_no_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert "not ours" in run("prune", *QUICK, "--out", tmp_path, "--resume").stderr
    assert not OutputFolder.check(tmp_path / "none", resume=True)
    assert not (tmp_path / MARKER).exists()


def test_variants_interrupted_before_the_first_begin_anew(tmp_path: Path) -> None:
    result = run("variants", *QUICK, "--out", tmp_path / "all", "--data", "no_module:data", "--resume")
    assert "nothing to resume" in result.output
    assert "nothing to resume" not in result.stderr


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("hwprune.cli.measure.local_profile", ["measure", "net.onnx"]),
        ("hwprune.cli.plan.local_profile", ["plan"]),
        ("hwprune.cli.profile_check.load_profile", ["profile", "check", "mine"]),
        ("hwprune.cli.export.single_precision_file", ["export", "run"]),
    ],
)
def test_a_command_that_keeps_nothing_says_how_to_start_again(
    function: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(function, interrupt)
    monkeypatch.setattr("sys.argv", ["hwprune", *arguments])
    result = run(*arguments)
    assert result.exit_code == 130
    assert result.stderr == f"Interrupted. Start again with: hwprune {' '.join(arguments)}\n"


@pytest.mark.parametrize("start", [["-m", "hwprune"], ["-c", "from hwprune.__main__ import run; run()"]])
def test_an_interruption_while_torch_is_imported_is_told_in_one_line(
    start: list[str], tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    outcome = subprocess.run(
        [sys.executable, *start, "prune", "--out", "my run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert outcome.returncode == 130
    assert (outcome.stdout, outcome.stderr) == (
        "",
        "Interrupted. Start again with: hwprune prune --out 'my run'\n",
    )


def test_the_command_is_what_answers_while_torch_is_imported() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"hwprune": "hwprune.__main__:run"}
