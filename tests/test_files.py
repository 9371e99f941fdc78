"""Files that replace others are whole, whoever else writes the same one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprune.files import TEMPORARY_FILES, replacing


def test_two_writers_of_one_process_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        assert all(name.match(TEMPORARY_FILES) and name.parent == tmp_path for name in (first, second))
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # which ended last
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]
