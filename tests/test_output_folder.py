"""What a killed run leaves behind is no obstacle to the next one, and what is not ours is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from hwprune.errors import ArtifactError, TrainingError
from hwprune.output_folder import (
    CHECKPOINTS,
    MARKER,
    MODEL_FILE,
    REPORT_FILE,
    SINGLE_FILE,
    OutputFolder,
)
from hwprune.report import single_precision_file


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


@pytest.mark.parametrize(("kept", "theirs"), [(False, False), (True, False), (False, True)])
def test_a_training_that_fails_leaves_its_mark_only_where_something_is_kept(
    kept: bool, theirs: bool, tmp_path: Path
) -> None:
    folder = OutputFolder.open(tmp_path, {"seed": 0}, resume=False)
    if theirs:
        (tmp_path / "notes.txt").write_text("mine")

    def train() -> None:
        if kept:
            folder.save_checkpoint("dense", {"epoch": 1})
        raise TrainingError("the loss is not finite")

    with pytest.raises(TrainingError), folder.empty_if_nothing_is_kept():
        train()
    assert bool(list(tmp_path.iterdir())) is (kept or theirs)
    assert OutputFolder.check(tmp_path, resume=True) is (kept or theirs)


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


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("content", ["", "[]", '{"name": "baseline"}', '{"hwprune": 1}', "\xff"])
def test_a_folder_with_somebody_elses_file_of_the_marks_name_is_left_alone(
    content: str, resume: bool, tmp_path: Path
) -> None:
    theirs = {MARKER: content, f"{CHECKPOINTS}/best.pt": "weights", ".notes.tmp": "mine", REPORT_FILE: "{}"}
    (tmp_path / CHECKPOINTS).mkdir()
    for name, text in theirs.items():
        (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match="exists and is not ours"):
        OutputFolder.open(tmp_path, {"seed": 0}, resume=resume)
    assert {name: (tmp_path / name).read_text(encoding="latin-1") for name in theirs} == theirs
    assert files_below(tmp_path) == sorted(theirs)


def test_a_fresh_start_has_no_report_of_the_run_before(tmp_path: Path) -> None:
    folder = OutputFolder.open(tmp_path, {"seed": 0}, resume=False)
    (folder.path / REPORT_FILE).write_text("{}")
    OutputFolder.open(tmp_path, {"seed": 1}, resume=False)
    assert not (tmp_path / REPORT_FILE).exists()


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_fresh_start_leaves_nothing_of_the_run_before_and_everything_else(tmp_path: Path) -> None:
    OutputFolder.open(tmp_path / "run", {"seed": 0}, resume=False)
    ours = [
        *("report.json", "report.html", "history.csv", "model.onnx", "model.fp32.onnx", "model.ncnn.bin"),
        *("slim/structure.json", "slim/model.safetensors", "openvino/model.xml", "openvino/model.bin"),
        *(
            "onnx/model.fp32.onnx",
            "onnx-int8/model.int8.onnx",
            "int8/int8.json",
            "checkpoints/old.safetensors",
        ),
    ]
    others = ["notes.txt", "onnx/precious.onnx", "curves/model.onnx", "slim.py", "elsewhere/model.onnx"]
    for name in (*ours, *others):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("old")
    (tmp_path / "run" / "elsewhere").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "mnn").symlink_to(tmp_path / "elsewhere")
    OutputFolder.open(tmp_path / "run", {"seed": 0}, resume=True)
    assert set(ours) <= set(files_below(tmp_path / "run"))
    OutputFolder.open(tmp_path / "run", {"seed": 1}, resume=False)
    kept = ["curves/model.onnx", "notes.txt", "onnx/precious.onnx", MARKER, "slim.py"]
    assert files_below(tmp_path / "run") == kept
    assert not (tmp_path / "run" / "openvino").exists()
    assert (tmp_path / "elsewhere" / "model.onnx").exists()


def test_a_model_without_a_report_is_no_finished_run(tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes(b"")
    with pytest.raises(ArtifactError, match="no finished run is here"):
        single_precision_file(tmp_path)
    (tmp_path / REPORT_FILE).write_text("{}")
    assert single_precision_file(tmp_path) == tmp_path / MODEL_FILE


def test_a_model_that_is_not_the_one_of_the_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes(b"as it was")
    written = hashlib.sha256(b"as it was").hexdigest()
    (tmp_path / REPORT_FILE).write_text(json.dumps({"files": {MODEL_FILE: written}}))
    assert single_precision_file(tmp_path) == tmp_path / MODEL_FILE
    (tmp_path / MODEL_FILE).write_bytes(b"as it is")
    with pytest.raises(ArtifactError, match="not the one that the run has written") as caught:
        single_precision_file(tmp_path)
    assert written in str(caught.value)
    for content in ("{", "[]"):
        (tmp_path / REPORT_FILE).write_text(content)
        with pytest.raises(ArtifactError, match="JSON"):
            single_precision_file(tmp_path)


def test_without_room_for_the_slim_network_no_model_is_put_in_place(tmp_path: Path) -> None:
    folder = OutputFolder.open(tmp_path / "run", {"seed": 0}, resume=False)
    for name in ("deployed", "single"):
        (tmp_path / name).write_text(name)

    def without_room(_path: Path) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        folder.write_result(tmp_path / "deployed", tmp_path / "single", without_room)
    assert files_below(folder.path) == [MARKER]
    folder.write_result(tmp_path / "deployed", tmp_path / "single", Path.mkdir)
    assert files_below(folder.path) == [SINGLE_FILE, MODEL_FILE, MARKER]
    assert (folder.path / MODEL_FILE).read_text() == "deployed"
    assert (folder.path / SINGLE_FILE).read_text() == "single"
    folder.write_result(tmp_path / "single", tmp_path / "single", lambda _path: None)
    assert files_below(folder.path) == [MODEL_FILE, MARKER]


def test_seconds_are_those_of_all_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    folder = OutputFolder.open(tmp_path, {"seed": 0}, resume=False, started=990.0)
    assert folder.seconds == 10
    now[0] = 1005.0
    folder.save_checkpoint("dense", {"epoch": 1})
    now[0] = 1006.0  # and killed; another process has another clock
    now[0] = 50.0
    again = OutputFolder.open(tmp_path, {"seed": 0}, resume=True, started=40.0)
    assert again.seconds == 15 + 10
    now[0] = 52.0
    again.save_checkpoint("dense", {"epoch": 2})
    assert OutputFolder.open(tmp_path, {"seed": 0}, resume=True).seconds == 27
    assert OutputFolder.open(tmp_path, {"seed": 0}, resume=False).seconds == 0


def test_a_mark_without_seconds_is_resumed_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    OutputFolder.open(tmp_path, {"seed": 0}, resume=False)
    (tmp_path / MARKER).write_text('{"hwprune": "prune", "settings": {"seed": 0}}')
    assert OutputFolder.open(tmp_path, {"seed": 0}, resume=True).seconds < 60
    for content in ("", ', "settings": 3', ', "settings": {}, "seconds": "long"'):
        (tmp_path / MARKER).write_text(f'{{"hwprune": "prune"{content}}}')
        with pytest.raises(ArtifactError, match="mark of the run is damaged"):
            OutputFolder.open(tmp_path, {"seed": 0}, resume=True)


def test_what_was_on_its_way_when_a_process_was_killed_is_removed(tmp_path: Path) -> None:
    folder = OutputFolder.open(tmp_path, {"model": "lenet5"}, resume=False)
    with folder.staging() as place:
        assert place.parent == tmp_path
    assert not place.exists()
    for resume in (True, False):
        place.mkdir()
        (place / "slim.onnx").write_bytes(b"half")
        OutputFolder.open(tmp_path, {"model": "lenet5"}, resume=resume)
        assert not place.exists()
