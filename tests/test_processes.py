"""Who tells an error that several processes raise, and what is told when one goes."""

from __future__ import annotations

import os
import signal
import socket
from importlib import import_module

import pytest
from click.testing import CliRunner

from hwprune.cli import main
from hwprune.errors import TrainingError
from hwprune.processes import TOLD_ELSEWHERE, alike, in_all, joined

PRUNE = import_module("hwprune.cli.prune")  # the package has a command of that name


def launched(patch: pytest.MonkeyPatch, rank: int) -> None:
    """As torchrun starts one of two."""
    told = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    for name, value in told.items():
        patch.setenv(name, str(value))


def test_outside_torchrun_an_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")  # some other launcher's
    assert not hasattr(alike(TrainingError("the loss is not finite")), "__notes__")


@pytest.mark.parametrize("note", [True, False])
def test_a_full_disk_of_the_first_process_is_told_once(note: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(28, "No space left on device", "model.onnx")
    if note:
        error.add_note(TOLD_ELSEWHERE)

    def full(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(PRUNE, "local_profile", full)
    result = CliRunner().invoke(main, ["prune", "--keep", "0.5"])
    assert result.exit_code == 1
    assert result.stderr == ("" if note else "Error: No space left on device (model.onnx)\n")


def test_one_process_computes_for_itself() -> None:
    assert in_all(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        in_all(lambda: 1 // 0)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts a single process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.usefixtures("alone")
def test_a_process_that_its_launcher_ends_says_so() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingError, match=r"told to end: got SIGTERM\. .*--resume"), joined():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("alone")
def test_a_connection_that_breaks_is_another_process_that_has_gone() -> None:
    with pytest.raises(TrainingError, match="another process of this run has gone"), joined():
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")
    with pytest.raises(RuntimeError, match="no such operator"), joined():
        raise RuntimeError("no such operator")
