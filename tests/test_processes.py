"""What a process that trains with others tells when they go."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from hwprune.errors import TrainingError
from hwprune.processes import joined


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
