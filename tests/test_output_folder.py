"""What a killed run leaves behind is no obstacle to the next one, and what is not ours is."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprune.errors import ArtifactError
from hwprune.output_folder import CHECKPOINTS, MARKER, REPORT_FILE, OutputFolder


def test_a_run_killed_while_it_wrote_its_mark_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".{MARKER}.123.tmp").write_text("{")
    OutputFolder.open(tmp_path, {"seed": 0}, resume=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINTS, MARKER]


def test_temporary_files_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    folder = OutputFolder.open(tmp_path, {"seed": 0}, resume=False)
    folder.save_checkpoint("dense", {"epoch": 1})
    half = [tmp_path / ".model.onnx.7.tmp", tmp_path / CHECKPOINTS / ".dense.safetensors.7.tmp"]
    for path in half:
        path.write_bytes(b"half of it")
    resumed = OutputFolder.open(tmp_path, {"seed": 0}, resume=True)
    assert not any(path.exists() for path in half)
    assert resumed.load_checkpoint("dense") == {"epoch": 1}


def test_a_finished_run_is_not_resumed(tmp_path: Path) -> None:
    folder = OutputFolder.open(tmp_path, {"seed": 0}, resume=False)
    folder.save_checkpoint("dense", {"epoch": 1})
    (tmp_path / REPORT_FILE).write_text("{}")
    OutputFolder.open(tmp_path, {"seed": 0}, resume=True)  # killed before its checkpoints were removed
    folder.remove_checkpoints()
    with pytest.raises(ArtifactError, match="the run is finished"):
        OutputFolder.open(tmp_path, {"seed": 0}, resume=True)
    assert (tmp_path / REPORT_FILE).exists()


def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one(tmp_path: Path) -> None:
    folder = OutputFolder.open(tmp_path, {"seed": 0}, resume=False)
    for epoch in (1, 2):
        folder.save_checkpoint("dense", {"epoch": epoch})
    last = tmp_path / CHECKPOINTS / "dense.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    assert folder.load_checkpoint("dense", lambda line: None) == {"epoch": 1}
    folder.save_checkpoint("dense", {"epoch": 2})
    last.write_bytes(last.read_bytes()[:-1])
    assert folder.load_checkpoint("dense", lambda line: None) == {"epoch": 1}


def test_another_hidden_file_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / ".profile.tmp").write_text("somebody's")
    with pytest.raises(ArtifactError, match="not ours"):
        OutputFolder.open(tmp_path, {"seed": 0}, resume=False)
    assert (tmp_path / ".profile.tmp").exists()


def test_a_fresh_start_has_no_report_of_the_run_before(tmp_path: Path) -> None:
    folder = OutputFolder.open(tmp_path, {"seed": 0}, resume=False)
    (folder.path / REPORT_FILE).write_text("{}")
    OutputFolder.open(tmp_path, {"seed": 1}, resume=False)
    assert not (tmp_path / REPORT_FILE).exists()
