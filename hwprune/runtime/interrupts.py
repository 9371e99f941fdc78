"""Ctrl-C while a runtime calls back: its compiled code cannot be left by an exception."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def finishing() -> Iterator[None]:
    """Lets what is inside finish before an interrupt takes effect; a second interrupt does so at once.

    Raises:
        KeyboardInterrupt: At the end, where there was an interrupt; instead of whatever it made go wrong
            inside, such as a converter that the same Ctrl-C ended.
    """
    if threading.current_thread() is not threading.main_thread() or _ignored():
        yield  # only the main thread is interrupted, and under nohup not even that
        return
    interrupts = 0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    except Exception as error:
        if interrupts:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt


def _ignored() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN
