"""What a node does without a cluster: files that came as bytes, and errors that go back."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hwprune.device.library import load_profile
from hwprune.device.profile import DeviceProfile
from hwprune.errors import HostError, RuntimeUnavailableError, TrainingError
from hwprune.executors import node
from hwprune.executors.parcels import pack, unpack
from hwprune.executors.quiet import Worker
from hwprune.phases import Observer
from hwprune.runtime.bench import Bench
from hwprune.runtime.timing import Timing

PROFILE = load_profile("x86-avx2-ort")


class Reads:
    """A bench that tells how many bytes the files have, as microseconds, and those beside them."""

    def time(
        self, paths: Mapping[str, Path], profile: DeviceProfile, runs: int | None = None
    ) -> dict[str, Timing]:
        sizes = {
            name: (path.stat().st_size, len(list(path.parent.iterdir()))) for name, path in paths.items()
        }
        return {name: Timing(size, size, size, count) for name, (size, count) in sizes.items()}


def test_model_files_arrive_under_their_names_with_their_weights(tmp_path: Path) -> None:
    (tmp_path / "slim.xml").write_bytes(b"structure")
    (tmp_path / "slim.bin").write_bytes(b"w")
    (tmp_path / "dense.onnx").write_bytes(b"all")
    sent = {}

    class Sends(node.Farm):
        def ask(self, profile: DeviceProfile, measurement: object, subject: object) -> dict[str, Timing]:
            sent["profile"] = profile
            return node.time_there(Reads(), profile, subject)  # type: ignore[arg-type]

    timings = Sends(None).time(  # type: ignore[arg-type]
        {"slim": tmp_path / "slim.xml", "dense": tmp_path / "dense.onnx"}, PROFILE
    )
    assert {name: (timing.median_us, timing.runs) for name, timing in timings.items()} == {
        "slim": (9, 2),
        "dense": (3, 1),
    }
    assert sent == {"profile": PROFILE}


def test_a_full_disk_where_something_is_measured_is_told() -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device", "/tmp/net.onnx")

    found = node.measure_there(full, PROFILE, None)
    assert isinstance(found, HostError)
    assert "No space left on device (/tmp/net.onnx) (in x86-avx2-ort)" in str(found)


def test_an_error_of_a_measurement_comes_back_as_a_value_and_a_mistake_is_raised() -> None:
    def refuse(bench: Bench, profile: DeviceProfile, subject: object) -> None:
        raise RuntimeUnavailableError("no such operator", got=subject)

    answer = node.measure_there(refuse, PROFILE, "conv9d")
    assert isinstance(answer, RuntimeUnavailableError)
    assert str(answer) == "no such operator: got conv9d"
    with pytest.raises(ZeroDivisionError):
        node.measure_there(lambda *_: 1 / 0, PROFILE, None)


class LeavesHalf:
    """A task that writes a checkpoint and then fails."""

    name, requires, after, devices, needs = "half", (), (), (), ("before",)
    makes = ("half", "never")

    def __init__(self, error: Exception) -> None:
        self.error = error

    def run(self, root: Path, bench: Bench, observer: Observer) -> Mapping[str, Any]:
        (root / "half").mkdir()
        (root / "half" / "checkpoint").write_text((root / "before").read_text() + ", epoch 1")
        raise self.error


def be_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_node_id=lambda: "0123456789")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get_runtime_context=lambda: context))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (TrainingError("the loss is not finite"), TrainingError, "the loss is not finite"),
        (
            OSError(28, "No space left on device", "/disk"),
            HostError,
            "node 01234567: No space left on device",
        ),
        (ZeroDivisionError("no light"), TrainingError, "got ZeroDivisionError: no light"),
    ],
)
def test_a_task_that_fails_sends_its_checkpoints_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    be_a_node(monkeypatch)
    monkeypatch.setattr(node, "Worker", lambda: Worker(tmp_path))
    (tmp_path / "before").write_text("epoch 0")
    task, lines = LeavesHalf(error), SimpleNamespace(put=lambda line: None)
    delivery = node.run_task(task, pack(tmp_path, ["before"]), lines)
    assert isinstance(delivery.error, kind)
    assert message in str(delivery.error)
    unpack(delivery.files, tmp_path / "home", task.makes)
    assert (tmp_path / "home" / "half" / "checkpoint").read_text() == "epoch 0, epoch 1"
    assert pickle.loads(pickle.dumps(delivery.error)).args == delivery.error.args


def test_a_node_without_a_place_for_the_locks_fails_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device", "/tmp/hwprune-0")

    be_a_node(monkeypatch)
    monkeypatch.setattr(node, "Worker", full)
    delivery = node.run_task(LeavesHalf(ValueError()), b"", SimpleNamespace(put=lambda line: None))
    assert str(delivery.error) == "node 01234567: No space left on device (/tmp/hwprune-0) (in half)"
