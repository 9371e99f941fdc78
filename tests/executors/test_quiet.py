"""Who measures is alone on the machine, and need not wait for ever."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from hwprune.errors import HostError
from hwprune.executors.quiet import Worker, alone


def test_who_measures_waits_for_a_worker_to_step_aside_and_then_has_the_machine(tmp_path: Path) -> None:
    steps: list[str] = []

    def measure() -> None:
        with alone(tmp_path):
            steps.append("measuring")
            time.sleep(0.1)
            steps.append("measured")

    with Worker(tmp_path) as worker:
        measuring = threading.Thread(target=measure)
        measuring.start()
        time.sleep(0.1)
        steps.append("worked")
        while measuring.is_alive() and "measured" not in steps:
            worker.step_aside()
        steps.append("works on")
        measuring.join()
    assert steps == ["worked", "measuring", "measured", "works on"]


def test_two_workers_are_in_at_once_and_two_who_measure_are_not(tmp_path: Path) -> None:
    with Worker(tmp_path), Worker(tmp_path) as second:
        second.step_aside()
    inside, most = 0, 0

    def measure() -> None:
        nonlocal inside, most
        with alone(tmp_path):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    threads = [threading.Thread(target=measure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_locks_are_in_a_folder_of_the_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = tmp_path / f"hwprune-{os.getuid()}"
    with alone():
        assert sorted(path.name for path in place.iterdir()) == ["room", "turnstile"]
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    place.chmod(0o770)
    with pytest.raises(HostError, match=r"open to others.*got drwxrwx---"), alone():
        pass
    place.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o700)
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError, match=r"open to others.*got l"), alone():
        pass


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = os.getuid()
    (tmp_path / f"hwprune-{mine + 1}").mkdir(mode=0o700)
    monkeypatch.setattr("os.getuid", lambda: mine + 1)
    with pytest.raises(HostError, match=f"of user {mine}"), alone():
        pass


def test_a_lock_follows_no_link_and_empties_no_file(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "room").write_text("held")
    with alone(tmp_path):
        assert (tmp_path / "room").read_text() == "held"
    (tmp_path / "turnstile").unlink()
    (tmp_path / "turnstile").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"), alone(tmp_path):
        pass
    assert precious.read_text() == "mine"
