"""Environments of the contenders that need packages of their own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]


def python_with(packages: Sequence[str], folder: Path) -> Path:
    """The interpreter of an environment with this project and ``packages``; made where it is missing.

    Args:
        packages: Requirements; none means this very interpreter.
        folder: Where environments are.

    Raises:
        ClickException: If pip fails.
    """
    if not packages:
        return Path(sys.executable)
    home = folder / hashlib.sha256("\n".join(packages).encode()).hexdigest()[:12]
    python, done = home / "bin" / "python", home / "installed"
    if not done.exists():
        click.echo(f"installing {' '.join(packages)}")
        venv.create(home, with_pip=True, clear=True)
        constraints = ROOT / "tools" / "constraints.txt"
        command = [python, "-m", "pip", "install", "-q", "-c", constraints, "-e", f"{ROOT}[demo]", *packages]
        if subprocess.run([str(part) for part in command], check=False).returncode:
            raise click.ClickException(f"pip cannot install {' '.join(packages)}")
        done.touch()
    return python
