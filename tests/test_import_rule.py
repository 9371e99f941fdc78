"""Imports point one way: the contracts of ``[tool.importlinter]`` hold, and would be missed if broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINT = """
import sys
from importlinter.cli import lint_imports
sys.exit(lint_imports("pyproject.toml", no_cache=True))
"""


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Checks the package in ``folder`` against the contracts beside it, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", LINT],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_imports_point_one_way() -> None:
    outcome = lint(ROOT)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("penalties/base.py", "import hwprune.device.profile"),
        ("graph/axes.py", "import hwprune.groups.base"),
        ("surgery/rebuild.py", "import hwprune.train.prox"),
        ("workloads/data.py", "import hwprune.operators"),
        ("errors.py", "def late():\n    import hwprune.files"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, module: str, statement: str) -> None:
    shutil.copytree(ROOT / "hwprune", tmp_path / "hwprune", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "hwprune" / module).open("a") as stream:
        stream.write(f"\n{statement}\n")
    outcome = lint(tmp_path)
    imported = statement.split()[-1]
    importer = "hwprune." + module.removesuffix(".py").replace("/", ".")
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    assert any(f"{importer} -> {imported}" in line for line in outcome.stdout.splitlines()), outcome.stdout


def test_a_module_without_a_layer_is_found(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "hwprune", tmp_path / "hwprune", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "hwprune" / "homeless.py").write_text('"""Nobody said where it belongs."""\n')
    outcome = lint(tmp_path)
    assert outcome.returncode == 1
    assert "homeless" in outcome.stdout
