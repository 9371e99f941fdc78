"""The executor on a Ray cluster: files travel, errors come back, a device has one measurement at a time."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from heard import Heard

from hwprune.device.library import load_profile
from hwprune.errors import HostError, HwpruneError, InputError, RuntimeUnavailableError, TrainingError
from hwprune.executors.cluster import RayCluster
from hwprune.phases import Observer
from hwprune.runtime.bench import Bench

ray = pytest.importorskip("ray", reason="needs pip install 'hwprune[ray]'")

DEVICE = "x86-avx2-ort"


@dataclass(frozen=True)
class Reads:
    """A task that adds to what another one left, or fails, or measures."""

    name: str
    requires: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    fails: bool = False

    @property
    def makes(self) -> tuple[str, ...]:
        return (self.name,)

    def run(self, root: Path, bench: Bench, observer: Observer) -> Mapping[str, Any]:
        if self.fails:
            raise TrainingError("the loss is not finite", where="epoch 1")
        observer.batch(0.5)
        read = [(root / name).read_text() for name in self.needs]
        (root / self.name).write_text("".join([*read, self.name]))
        return {"root": str(root)}


@dataclass(frozen=True)
class Measures(Reads):
    """A task that has something timed which no runtime can read."""

    def run(self, root: Path, bench: Bench, observer: Observer) -> Mapping[str, Any]:
        (root / "bad.onnx").write_bytes(b"no network")
        bench.time({"bad": root / "bad.onnx"}, load_profile(DEVICE))
        return {}


@dataclass(frozen=True)
class Asks(Reads):
    """A task that asks the farm for something that takes a while."""

    def run(self, root: Path, bench: Any, observer: Observer) -> Mapping[str, Any]:
        begin, end = bench.ask(load_profile(DEVICE), nap, 0.2)
        return {"begin": begin, "end": end}


@dataclass(frozen=True)
class Foreign(Reads):
    """A task that only its own machine can read, as of another version of the package."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("hwprune.of_another_version",)


@dataclass(frozen=True)
class Breaks(Reads):
    """A task whose measurement ends as no runtime tells it."""

    def run(self, root: Path, bench: Any, observer: Observer) -> Mapping[str, Any]:
        bench.ask(load_profile(DEVICE), break_down, None)
        return {}


def break_down(_bench: Bench, _profile: object, _subject: object) -> None:
    raise RuntimeError("illegal instruction")


def nap(_bench: Bench, _profile: object, seconds: float) -> tuple[float, float]:
    begin = time.monotonic()
    time.sleep(seconds)
    return begin, time.monotonic()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """This machine as a cluster of two cores that offers one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, resources={DEVICE: 1}, include_dashboard=False, log_to_driver=False)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield
        ray.shutdown()


def test_tasks_hand_each_other_files_and_errors_come_back_as_they_were(cluster: None, tmp_path: Path) -> None:
    first = Reads("first")
    tasks = [
        first,
        replace(first, name="second", requires=("first",), needs=("first",)),
        replace(first, name="bad", fails=True),
        replace(first, name="of bad", requires=("bad",)),
        replace(first, name="after bad", after=("bad",)),
        Measures("measured", devices=(DEVICE,)),
        Asks("one", devices=(DEVICE,)),
        Asks("two", devices=(DEVICE,)),
        Foreign("foreign"),
        Breaks("breaks", devices=(DEVICE,)),
    ]
    observer = Heard()
    found = {outcome.task.name: outcome for outcome in RayCluster().run(tasks, tmp_path, observer)}
    assert found.keys() == {task.name for task in tasks}
    assert (tmp_path / "second").read_text() == "firstsecond"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after bad", "first", "second"]
    assert found["first"].told["root"] != str(tmp_path)
    for name in ("bad", "of bad"):
        assert isinstance(found[name].error, TrainingError)
        assert str(found[name].error) == "the loss is not finite (in epoch 1)"
    assert isinstance(found["measured"].error, RuntimeUnavailableError)
    for name, message in (
        ("foreign", "No module named 'hwprune.of_another_version'"),
        ("breaks", f"node with the device (in {DEVICE}): got RuntimeError: illegal instruction"),
    ):
        assert isinstance(found[name].error, HostError)
        assert message in str(found[name].error)
    ordered = sorted((found[name].told["begin"], found[name].told["end"]) for name in ("one", "two"))
    assert ordered[0][1] <= ordered[1][0], "two measurements had the device at once"
    assert observer.counts[-1] == (len(tasks), len(tasks))
    assert sum("tasks are over: " in line for line in observer.lines) == len(tasks)
    assert any(line.startswith("second: begins on node") for line in observer.lines)


def test_a_device_that_no_node_offers_is_told_before_anything_is_done(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no node of the cluster offers the device \(in board\)"):
        list(RayCluster().run([Reads("first", devices=("board",))], tmp_path, Heard()))
    assert list(tmp_path.iterdir()) == []


def test_more_cores_than_any_node_has_are_told(cluster: None, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"so many cores \(in --ray-cores\).*at most 2, got 3"):
        list(RayCluster(cores=3).run([Reads("first")], tmp_path, Heard()))


@pytest.mark.parametrize("kind", [ConnectionError, ValueError])
def test_no_cluster_at_the_address_is_told(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_options: object) -> None:
        raise kind("nobody answers\nat all")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(HostError, match=r"no cluster at the address .*nobody answers") as caught:
        list(RayCluster("10.0.0.1:6379").run([], tmp_path, Heard()))
    assert isinstance(caught.value, HwpruneError)
