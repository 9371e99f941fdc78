"""The executor on a stand-in for Ray: clusters that cannot be joined, nodes that lack something."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from heard import Heard

from hwprune.device.library import load_profile
from hwprune.errors import HostError
from hwprune.executors import cluster, node
from hwprune.executors.cluster import RayCluster
from hwprune.executors.node import Delivery
from hwprune.executors.parcels import pack

REPORT = "ray::run_task() (pid=7)\n  File ...\nModuleNotFoundError: No module named 'hwprune'"


class RayTaskError(Exception):
    """What Ray raises here of an exception there."""


class Remote:
    """A function on the nodes; asked for a task, it gives what stands for its result."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.results, self.name = results, ""

    def options(self, *, name: str, **_rest: object) -> Remote:
        made = Remote(self.results)
        made.name = name
        return made

    def remote(self, *_arguments: object) -> str:
        return self.name


def stand_in(results: dict[str, Any]) -> SimpleNamespace:
    """Of the package: tasks and measurements come to these results, by their names."""

    def get(name: str) -> Any:
        if isinstance(results[name], Exception):
            raise results[name]
        return results[name]

    return SimpleNamespace(
        is_initialized=lambda: True,
        cluster_resources=dict,
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 1}}],
        remote=lambda _function: Remote(results),
        wait=lambda names, timeout: (names, []),
        get=get,
        exceptions=SimpleNamespace(RayTaskError=RayTaskError, RayError=RuntimeError),
    )


def test_a_cluster_of_another_version_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**_options: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with Ray 2.9\nand more")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=refuse))
    for address in ("head:6379", None):  # in neither case is one of our own started instead
        with pytest.raises(HostError, match=r"cannot be joined .*Version mismatch.* 2\.9\. Install the same"):
            list(RayCluster(address).run([], tmp_path, Heard()))


def test_where_there_is_no_cluster_a_new_one_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str | None] = []

    def join(address: str | None = None, **_options: object) -> None:
        asked.append(address)
        if address == "auto":
            raise ConnectionError("nobody answers")

    ray = stand_in({})
    ray.is_initialized, ray.init, ray.shutdown = (lambda: False), join, lambda: None
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster, "_mailbox", lambda ray: None)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    assert list(RayCluster().run([], tmp_path, Heard())) == []
    assert asked == ["auto", "local"]


def test_a_node_without_the_package_fails_its_task_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def task(name: str) -> Any:
        return SimpleNamespace(name=name, requires=(), after=(), devices=(), needs=(), makes=())

    done = Delivery({"made": "well"}, pack(tmp_path, ()), None)
    monkeypatch.setitem(sys.modules, "ray", stand_in({"bare": RayTaskError(REPORT), "well": done}))
    mailbox = SimpleNamespace(qsize=lambda: 0, get_nowait_batch=lambda count: [])
    monkeypatch.setattr(cluster, "_mailbox", lambda ray: mailbox)
    observer = Heard()
    tasks = [task("bare"), task("well")]
    found = {outcome.task.name: outcome for outcome in RayCluster().run(tasks, tmp_path, observer)}
    assert found["well"].told == {"made": "well"}
    assert isinstance(found["bare"].error, HostError)
    assert "(in bare): got ModuleNotFoundError: No module named 'hwprune'" in str(found["bare"].error)
    assert "every node has the same version of hwprune" in str(found["bare"].error)
    assert observer.lines == ["1 of 2 tasks are over: bare", "2 of 2 tasks are over: well"]


def test_what_a_runtime_raises_on_a_board_is_told_of_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = load_profile("x86-avx2-ort")
    report = "ray::measure_there() (pid=7)\nRuntimeError: illegal instruction"
    monkeypatch.setitem(sys.modules, "ray", stand_in({f"measure {profile.name}": RayTaskError(report)}))

    class Worker:
        @contextmanager
        def aside(self) -> Iterator[None]:
            yield

    with pytest.raises(HostError, match=r"the device \(in x86-avx2-ort\): got RuntimeError: illegal"):
        node.Farm(Worker()).ask(profile, node.time_there, None)  # type: ignore[arg-type]
