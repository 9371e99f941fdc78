"""Native code that prints, and converters that die."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest

from hwprune.errors import RuntimeUnavailableError
from hwprune.runtime.native import run_converter, silenced


def test_native_output_is_kept_off_both_streams(capfd: pytest.CaptureFixture[str]) -> None:
    with silenced() as said:
        os.write(1, b"to stdout, ")
        os.write(2, b"to stderr, ")
        ctypes.CDLL(None).puts(b"through the buffer of the C library")
    os.write(1, b"told")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr() == ("told", "")
    assert said.text == "to stdout, to stderr, through the buffer of the C library\n"


def test_streams_come_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), silenced():
        raise KeyError
    os.write(1, b"told")
    assert capfd.readouterr().out == "told"


@pytest.mark.parametrize(
    ("code", "what", "got"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "crashed", "Illegal instruction"),
        ("print('These Op Not Support: Foo'); print('bye')", "refuses", "These Op Not Support: Foo"),
        ("import sys; print('no such thing'); sys.exit(3)", "refuses", "no such thing"),
        ("import sys; sys.exit(3)", "refuses", "no message"),
    ],
)
def test_a_converter_that_fails_is_an_error_in_words(tmp_path: Path, code: str, what: str, got: str) -> None:
    with pytest.raises(RuntimeUnavailableError, match=what) as caught:
        run_converter([sys.executable, "-c", code], [tmp_path / "out"], what="the converter", where="model")
    assert caught.value.got == got
    assert caught.value.where == "model"


def test_a_converter_that_is_not_there_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match="cannot be started"):
        run_converter(["/no/such/program"], [tmp_path / "out"], what="the converter", where="model")


def test_what_a_converter_prints_is_returned(tmp_path: Path) -> None:
    code = "open('out', 'w').write('x'); print('done')"
    told = run_converter([sys.executable, "-c", code], [tmp_path / "out"], what="it", where="model")
    assert told == "done\n"
