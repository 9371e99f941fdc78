"""Two commands never write one folder at a time, and none that is gone is in the way."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hwprune.cli import main
from hwprune.errors import ArtifactError
from hwprune.folder_lock import alone_in

#: Takes the folder that it is given, tells so and waits.
HOLDER = """
import sys
from pathlib import Path
from hwprune.folder_lock import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
#: Seconds of a process that waits for its end.
PATIENCE = 60


def test_a_folder_is_taken_once_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(2):
        with alone_in(folder), pytest.raises(ArtifactError, match="another command"), alone_in(folder):
            pytest.fail("two are in the folder")
    with alone_in(folder), alone_in(tmp_path / "other"):
        assert not folder.exists()


def test_a_link_leads_to_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with alone_in(tmp_path / "run"), pytest.raises(ArtifactError), alone_in(tmp_path / "link"):
        pytest.fail("two are in the folder")


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match="another command"), alone_in(folder):
            pytest.fail("two are in the folder")
        holder.send_signal(signal.SIGKILL)
        holder.wait(PATIENCE)
    with alone_in(folder):
        assert not folder.exists()


@pytest.mark.parametrize(
    "command",
    [
        ["prune", "--model", "lenet5"],
        ["variants", "--model", "lenet5"],
        ["profile", "build", "--for", "lenet5:1x8x8"],
    ],
    ids=lambda command: command[0],
)
def test_a_second_command_leaves_the_folder_as_it_is(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    with alone_in(out):
        result = CliRunner().invoke(main, [*command, "--out", str(out)])
    assert result.exit_code == 1
    assert "another command of hwprune is writing the folder" in result.output
    assert "--out" in result.output
    assert not out.exists()
