"""Variants on three nodes with different devices, one of which dies half-way: the result of one process."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from heard import Heard

from hwprune.device.library import load_profile, shipped_folder
from hwprune.executors.cluster import RayCluster
from hwprune.targets import Keep
from hwprune.train.loop import Recipe
from hwprune.variants import Grid, make_variants

ray = pytest.importorskip("ray", reason="needs pip install 'hwprune[ray]'")

DEVICES = ("any-cpu-ort", "here-openvino")
#: Of what is made for a variant, the files that no measurement enters.
FILES = ("model.onnx", "slim/model.safetensors", "slim/structure.json")


class Kills(Heard):
    """Kills a node while it trains a variant, once the dense network and another variant are done."""

    def __init__(self, cluster: Any, node: Any) -> None:
        super().__init__()
        self.cluster, self.node, self.victim = cluster, node, ""
        self.done = 0

    def tasks(self, done: int, total: int) -> None:
        self.done = done

    def note(self, line: str) -> None:
        super().note(line)
        name, _, rest = line.partition(": ")
        here = f"{name}: begins on node {self.node.node_id[:8]}" in self.lines
        if not self.victim and self.done >= 2 and here and rest.startswith("training prune"):
            self.victim = name
            self.cluster.remove_node(self.node, allow_graceful=False)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As tasks on nodes: sums in another order would make other weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """A network for two devices at three targets each, a tighter one after the looser."""
    folder = tmp_path / "profiles" / "here-openvino"
    folder.mkdir(parents=True)
    content = (shipped_folder() / "any-cpu-ort" / "profile.toml").read_text()
    content = content.replace('"any-cpu-ort"', '"here-openvino"').replace('"onnxruntime"', '"openvino"')
    content = content.replace('"CPUExecutionProvider"', '""')
    (folder / "profile.toml").write_text(content)
    return Grid(
        ["lenet5"],
        "digits",
        {name: load_profile(name, folder.parent) for name in DEVICES},
        [Keep(0.7), Keep(0.5), Keep(0.4)],
        Recipe(2, 128, 0.1, seed=0),
        fine_tune=Recipe(1, 128, 0.03, seed=0),
    )


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """A head and three nodes: a board that only measures, and two that train, of which one is to die."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=0, resources={DEVICES[0]: 1})
    cluster.add_node(num_cpus=1, resources={DEVICES[1]: 1})
    victim = cluster.add_node(num_cpus=1, resources=dict.fromkeys(DEVICES, 1))
    cluster.wait_for_nodes()
    yield cluster, victim
    cluster.shutdown()


@pytest.mark.slow
def test_a_node_that_dies_costs_nothing_but_time(
    grid: Grid, cluster: tuple[Any, Any], tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    make_variants(grid, here, Heard(), resume=False)
    observer = Kills(*cluster)
    executor = RayCluster(cluster[0].address)
    make_variants(grid, there, observer, resume=False, executor=executor)

    begun = [line for line in observer.lines if line.startswith(f"{observer.victim}: begins")]
    assert observer.victim, "no variant was at work on the node"
    assert len(begun) >= 2, "the variant was not begun again"
    assert len({re.sub(r".* ", "", line) for line in begun}) == 2
    expected, found = _manifest(here), _manifest(there)
    assert [entry["name"] for entry in found] == [entry["name"] for entry in expected]
    for one, other in zip(expected, found, strict=True):
        assert other["status"] == "done"
        assert other["files"].keys() == one["files"].keys()
        for file in FILES:
            assert other["files"][file] == one["files"][file], (other["name"], file)
        for network in ("dense", "slim"):
            for fact in ("accuracy", "params", "macs"):
                assert other[network][fact] == one[network][fact]
        for file, digest in other["files"].items():
            content = (there / other["name"] / file).read_bytes()
            assert hashlib.sha256(content).hexdigest() == digest


def _manifest(out: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((out / "manifest.json").read_text())["variants"]
    return entries
