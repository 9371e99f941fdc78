"""Short runs of the command, and what it says where one fails."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from hwprune.cli import main

QUICK = ["--model", "lenet5", "--keep", "0.5", "--epochs", "2", "--train-images", "128", "--batch-size", "64"]


def prune(out: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["prune", "--out", str(out), *QUICK, *map(str, arguments)])


def told_in_one_message(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.output
    return errors[0]
