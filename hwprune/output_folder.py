"""The output folder of ``prune``: ours to write, resumable, never half-written."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune.errors import ArtifactError, InputError
from hwprune.files import TEMPORARY_FILES, replacing, sha256_of, write_json
from hwprune.processes import is_first
from hwprune.runtime.formats import FORMATS
from hwprune.surgery.structure import STRUCTURE_FILE, WEIGHTS_FILE
from hwprune.train.checkpoint import load_checkpoint, save_checkpoint

#: Marks a folder as ours and says which run it belongs to.
MARKER = "run.json"
#: What tells the mark from a file of the same name.
_PROGRAM, _COMMAND = "hwprune", "prune"
#: In the mark: how long the run had taken at its last checkpoint.
_SECONDS = "seconds"
#: Written last: a folder that has it is finished.
REPORT_FILE = "report.json"
MODEL_FILE, SLIM_FOLDER, CHECKPOINTS = "model.onnx", "slim", "checkpoints"
#: The network in single precision, where the device runs another one.
SINGLE_FILE = "model.fp32.onnx"
HISTORY_FILE, PAGE_FILE = "history.csv", "report.html"
#: Where a variant's quantised network is, the file's name without its ending, and what is known of it.
INT8_FOLDER, INT8_STEM = "int8", "model.int8"
INT8_FILE = f"{INT8_FOLDER}/int8.json"
#: What every model file begins with, in the folder itself or in one of a format.
_STEMS = (Path(MODEL_FILE).stem, Path(SINGLE_FILE).stem, INT8_STEM)
#: What is being made and not yet in place; removed by the next start where a process was killed.
STAGING = ".staging"
#: In the name of the checkpoint before the last one.
BEFORE = "-before"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """A folder that holds one run.

    Attributes:
        path: The folder.
        run: Hash of the run's settings; checkpoints of other runs are refused.
        begun: When the run would have begun had it never been interrupted, by :func:`time.perf_counter`.
    """

    path: Path
    run: str
    begun: float

    @property
    def seconds(self) -> float:
        """How long the run has taken, its earlier sessions up to the last checkpoint of each included."""
        return time.perf_counter() - self.begun

    @classmethod
    def check(cls, path: Path, *, resume: bool) -> bool:
        """Raises where the folder cannot be written or is not ours, before anything is computed.

        Returns:
            Whether a run is in it that is gone on with; never one without ``resume``.

        Raises:
            ArtifactError: If it holds something else, or the run to resume is finished.
            InputError: If it cannot be written.
        """
        if path.is_symlink() and not path.exists():
            raise ArtifactError(
                "the output folder is a link that leads nowhere",
                where=path,
                expected="a folder or nothing",
                got=os.readlink(path),
            )
        if path.exists() and not path.is_dir():
            raise ArtifactError("the output folder is a file", where=path, expected="a folder or nothing")
        if path.is_dir() and not may_take(path):
            raise ArtifactError(
                "the output folder exists and is not ours",
                where=path,
                expected="no such folder, an empty one, or one written by hwprune prune",
                hint="name another one with --out",
            )
        if resume and (path / REPORT_FILE).is_file() and not (path / CHECKPOINTS).exists():
            raise ArtifactError(
                "the run is finished",
                where=path,
                expected="an interrupted one",
                hint="read it with hwprune report, or start without --resume to make it again",
            )
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise InputError("the output folder cannot be written", where=path, expected="a writable place")
        return resume and is_marked(path)

    @classmethod
    def open(
        cls, path: Path, settings: dict[str, Any], *, resume: bool, started: float | None = None
    ) -> OutputFolder:
        """Takes the folder for a run.

        Args:
            path: The folder; made where it is missing.
            settings: What the run is asked to do.
            resume: Keep the checkpoints of an earlier run with the same settings, if there is one: a run
                that was interrupted while it measured has left nothing yet.
            started: When this session began, by :func:`time.perf_counter`; ``None`` for now.

        Raises:
            ArtifactError: If it is not ours, or was made with other settings than the run to resume.
        """
        goes_on = cls.check(path, resume=resume)
        path.mkdir(parents=True, exist_ok=True)
        marker, seconds = path / MARKER, 0.0
        if goes_on:
            seconds = _go_on(marker, settings)
        else:
            _remove_results(path)
            shutil.rmtree(path / CHECKPOINTS, ignore_errors=True)
        for left_by_a_killed_run in path.rglob(TEMPORARY_FILES):
            left_by_a_killed_run.unlink()
        shutil.rmtree(path / STAGING, ignore_errors=True)
        write_json(marker, {_PROGRAM: _COMMAND, "settings": settings, _SECONDS: seconds})
        (path / CHECKPOINTS).mkdir(exist_ok=True)
        run = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return cls(path, run, (time.perf_counter() if started is None else started) - seconds)

    def has_checkpoint(self, phase: str) -> bool:
        """Whether a phase has begun and left something to go on from."""
        return self._checkpoint(phase).is_file() or self._checkpoint(phase, BEFORE).is_file()

    def load_checkpoint(self, phase: str, notify: Callable[[str], None] = logger.warning) -> Any | None:
        """The last good checkpoint of a phase, ``None`` where there is none.

        Args:
            phase: ``dense`` or ``prune``.
            notify: Told where the last checkpoint is damaged and the one before it is taken.

        Raises:
            ArtifactError: If there are checkpoints and none is good, or they are another run's.
        """
        last, before = self._checkpoint(phase), self._checkpoint(phase, BEFORE)
        if not last.is_file():  # never written, or killed between moving one away and writing the next
            return self._own(before) if before.is_file() else None
        try:
            return self._own(last)
        except ArtifactError as error:
            if not before.is_file():
                raise
            state = self._own(before)
            last.unlink()  # or the next checkpoint would move it over the good one
            notify(f"{error.what}, going on from the one before it: {last}")
            return state

    def save_checkpoint(self, phase: str, state: Any) -> None:
        """Adds a checkpoint of a phase; the one before it is kept.

        Raises:
            OSError: If there is no room; what was the last checkpoint is then the one before.
        """
        last = self._checkpoint(phase)
        if last.is_file():
            last.replace(self._checkpoint(phase, BEFORE))
        save_checkpoint(last, {"run": self.run, "state": state})
        marker = self.path / MARKER
        write_json(marker, {**_read_marker(marker), _SECONDS: round(self.seconds, 2)})

    def _own(self, path: Path) -> Any:
        """The state in a checkpoint of this very run."""
        content = load_checkpoint(path)
        if not isinstance(content, dict) or content.get("run") != self.run:
            raise ArtifactError(
                "the checkpoint belongs to another run",
                where=path,
                expected="one that this folder's run has written",
                hint="start again without --resume",
            )
        return content["state"]

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Yields a folder for models on their way, on the disk that they are going to stay on."""
        place = self.path / STAGING
        place.mkdir(exist_ok=True)
        try:
            yield place
        finally:
            # What a network file system still holds is removed by the next start.
            shutil.rmtree(place, ignore_errors=True)

    def write_result(
        self, deployed: Path, single: Path, write_slim: Callable[[Path], None]
    ) -> dict[str, str]:
        """Puts the exported model and the slim folder in place, no model where the folder cannot be written.

        Args:
            deployed: The model as the device runs it, copied.
            single: The model in single precision, copied too where it is another file.
            write_slim: Writes the slim network into the folder it is given.

        Returns:
            Name of every model to the SHA-256 of its file.
        """
        (self.path / SINGLE_FILE).unlink(missing_ok=True)
        files = {SINGLE_FILE: single, MODEL_FILE: deployed} if single != deployed else {MODEL_FILE: deployed}
        with ExitStack() as put_in_place_last:
            for name, source in files.items():
                shutil.copyfile(source, put_in_place_last.enter_context(replacing(self.path / name)))
            write_slim(self.path / SLIM_FOLDER)
        return {name: sha256_of(source) for name, source in files.items()}

    @contextmanager
    def empty_if_nothing_is_kept(self) -> Iterator[None]:
        """Within the context the run trains; where that fails before its first checkpoint no mark is left."""
        try:
            yield
        except Exception:
            if is_first() and self._nothing_kept():
                self.remove_checkpoints()
                (self.path / MARKER).unlink()
            raise

    def _nothing_kept(self) -> bool:
        """Whether there is no checkpoint, nor a file beside the mark: without it that would be in the way."""
        there = {item.name for item in self.path.iterdir()}
        return there == {MARKER, CHECKPOINTS} and not any((self.path / CHECKPOINTS).iterdir())

    def remove_checkpoints(self) -> None:
        """Drops the checkpoints of a run that is complete."""
        shutil.rmtree(self.path / CHECKPOINTS)

    def _checkpoint(self, phase: str, age: str = "") -> Path:
        return self.path / CHECKPOINTS / f"{phase}{age}.safetensors"


def is_marked(path: Path) -> bool:
    """Whether a run of ours is in a folder: other programs write files of the mark's name too."""
    try:
        content = json.loads((path / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get(_PROGRAM) == _COMMAND


def may_take(folder: Path) -> bool:
    """Whether nothing of anybody else's is lost where a run takes a folder that exists."""
    # A run that was killed while it wrote its mark has left that behind and nothing else.
    return is_marked(folder) or all(item.match(f".{MARKER}.*.tmp") for item in folder.iterdir())


def nothing_to_resume(path: Path) -> str:
    """Tells who asked to go on that there is nothing to go on from."""
    return f"nothing to resume in {path}: starting anew"


def _remove_results(path: Path) -> None:
    """Removes what an earlier run and its exports have left, and nothing else: it is none of the next run.

    The report goes first: what is left by a process that is killed here is no finished run.
    """
    models, formats = _model_files(), (*FORMATS, *(f"{name}-int8" for name in FORMATS))
    files = {
        "": [REPORT_FILE, PAGE_FILE, HISTORY_FILE, *models],
        SLIM_FOLDER: [STRUCTURE_FILE, WEIGHTS_FILE],
        INT8_FOLDER: [Path(INT8_FILE).name, *models],
        **dict.fromkeys(formats, models),
    }
    for folder, names in files.items():
        place = path / folder
        if place.is_symlink() or not place.is_dir():
            continue
        for name in names:
            (place / name).unlink(missing_ok=True)
        if folder and not any(place.iterdir()):
            place.rmdir()


def _model_files() -> list[str]:
    """Names of all files that models are exported to, and of the weights that lie beside some."""
    names = [f"{stem}{ending}" for stem in _STEMS for ending, _, _ in FORMATS.values()]
    return [*names, *(Path(name).with_suffix(".bin").name for name in names)]


def _read_marker(marker: Path) -> dict[str, Any]:
    """What the mark says; those of old runs know no seconds."""
    try:
        content = json.loads(marker.read_text(encoding="utf-8"))
        return {**content, "settings": dict(content["settings"]), _SECONDS: float(content.get(_SECONDS, 0))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError("the mark of the run is damaged", where=marker, got=error) from error


def _go_on(marker: Path, settings: dict[str, Any]) -> float:
    """The seconds that the run to resume has taken, which must have been started with the same settings."""
    content = _read_marker(marker)
    before = content["settings"]
    now = json.loads(json.dumps(settings))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        raise ArtifactError(
            "the run to resume was started with other settings",
            where=marker,
            expected={key: before.get(key) for key in changed},
            got={key: now.get(key) for key in changed},
            hint="give the same options, or start without --resume",
        )
    return float(content[_SECONDS])
