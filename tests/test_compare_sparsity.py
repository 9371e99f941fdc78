"""The comparison of sparse networks on a tiny task: what it trains, resumes and writes."""

import copy
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from hwprune.workloads import Dataset


@pytest.fixture
def runs(load_tool, monkeypatch):
    module = load_tool("sparsity_runs")
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(40, 1, 8, 8, generator=generator), torch.arange(40) % 4
    small = Dataset("small", images, labels, images, labels, 4)
    monkeypatch.setattr(module, "load_dataset", lambda _name: small)
    for name, network in module.NETWORKS.items():
        monkeypatch.setitem(
            module.NETWORKS, name, replace(network, images=40, epochs=4, further=2, batch_size=10)
        )
    return module


@pytest.fixture
def tool(runs, load_tool):
    return load_tool("compare_sparsity")


def run_of(runs, pattern, method, network="lenet300", start="random"):
    return runs.Run(network, start, pattern, method, 0, 40, 4 if start == "random" else 2)


def test_every_method_keeps_what_is_asked_for_and_finished_runs_are_not_repeated(
    tool, runs, monkeypatch, tmp_path
):
    page = tmp_path / "page.md"
    arguments = ["--out", str(page), "--seeds", "1", "--network", "lenet300"]
    first = CliRunner().invoke(tool.main, arguments)
    assert first.exit_code == 0, first.output
    text = page.read_text()
    page.unlink()
    monkeypatch.setattr(tool, "train", lambda run: pytest.fail(f"trained again: {run}"))
    again = CliRunner().invoke(tool.main, arguments)
    assert again.exit_code == 0, again.output
    assert page.read_text() == text
    for start in ("random weights", "a trained start"):
        assert f"## LeNet-300-100, from {start}" in text
    total = 64 * 300 + 300 * 100 + 100 * 4
    for key, pattern in runs.PATTERNS.items():
        for start in ("random", "trained"):
            rows = [
                line for line in text.splitlines() if f"| {pattern.kept.count_of(total)} of {total} |" in line
            ]
            for method in runs.methods_of(key, start):
                assert any(row.startswith(f"| {method} |") for row in rows), (key, method)


def test_a_trained_start_is_shared_and_left_as_it_was(runs):
    dense = run_of(runs, runs.DENSE, runs.DENSE)
    start = runs.trained_start(dense)
    before = copy.deepcopy(start.state_dict())
    further = runs.train(run_of(runs, "2:4", "magnitude", start="trained"))
    assert runs.trained_start(dense) is start
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    assert further.accuracy > runs.train(run_of(runs, runs.DENSE, runs.DENSE)).accuracy - 0.3


def test_layers_that_blocks_do_not_divide_are_left_out_of_the_count(runs):
    for method in ("envelope", "sr-ste"):
        outcome = runs.train(run_of(runs, "1:4", method, network="lenet5"))
        assert outcome.kept == outcome.total // 4
        assert outcome.total == 50 * 20 * 25 + 500 * 50 * 4 + 4 * 500
