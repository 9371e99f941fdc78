"""A sample of the zoo: what ``tools/zoo.py`` asks of every network, asked of a few."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

TOOLS = Path(__file__).parents[1] / "tools"
PUBLISHED = [
    *("torchvision/resnet18", "torchvision/shufflenet_v2_x0_5", "timm/ghostnet_100", "timm/pvt_v2_b0"),
    *("pytorchcv/resnet20_cifar10", "pytorchcv/densenet40_k12_cifar10"),
    *("transformers/bert", "transformers/llama", "transformers/gpt2", "transformers/vit"),
]


@pytest.fixture(scope="module")
def zoo(monkeypatch_module):
    monkeypatch_module.syspath_prepend(str(TOOLS))
    import zoo_cut
    import zoo_networks
    import zoo_page

    return zoo_cut, zoo_networks, zoo_page


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_the_list_is_long_enough_and_names_nothing_twice(zoo):
    _cut, networks, _page = zoo
    entries = list(networks.entries())
    assert len(entries) >= 120
    assert len(set(entries)) == len(entries)


@pytest.mark.parametrize("seed", [0, 5, 24])
def test_random_networks_are_judged(zoo, seed):
    cut, networks, _page = zoo
    outcome = cut.judge_cut(networks.Entry("random", str(seed)))
    assert outcome.verdict == "pruned"
    assert outcome.gone >= cut.ENOUGH


def test_an_exported_network_is_judged(zoo):
    cut, networks, _page = zoo
    assert cut.judge_exported(networks.Entry("random", "5")).verdict == "equal"


def test_a_wrong_cut_is_seen(zoo, monkeypatch):
    cut, networks, _page = zoo
    model, inputs = networks.build(networks.Entry("random", "5"))
    free = [axis for axis in cut.find_axes(model, inputs) if axis.pinned is None]
    monkeypatch.setattr(cut, "zeroed", lambda *_: contextlib.nullcontext())
    wrong = cut.cut_half(model, free, inputs, fold=False)
    assert "does not compute what the masked one computes" in wrong.failure


class Gated(nn.Module):
    """Constants that padding does not let a bias take up after the first layer, and does after the second."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, images):
        return self.head(torch.sigmoid(self.second(torch.sigmoid(self.first(images)))))


def test_reasons_are_those_of_the_compressor(zoo):
    cut, _networks, _page = zoo
    torch.manual_seed(0)
    found = cut.examine(Gated(), torch.randn(2, 3, 8, 8))
    assert [axis.name for axis in found.free] == ["second"]
    assert any("a zeroed channel still acts on the network" in reason for reason in found.reasons)
    assert found.cut.failure is None


def test_the_page_counts(zoo):
    cut, _networks, page = zoo
    asked = {"date": "2026-01-02", "revision": "abc"}
    good = cut.Outcome("random", "1", "pruned", 0.6, 3, 2, {"network output": 1, "a softmax": 2}, **asked)
    absent = cut.Outcome("random", "2", "not built", reasons={"ImportError": 1})
    forgotten = cut.Outcome("random", "3", page.NOT_ASKED)
    text = page.as_markdown([good, absent, forgotten], [cut.Outcome("random", "1", "equal")], [], "torch 2")
    assert "3 networks, 1 of them judged: 1 pruned, 0 WRONG; 100.0% pruned." in text
    assert "Without a verdict: 1 not built, 1 not asked, 0 no answer." in text
    assert "Versions: torch 2. Asked 2026-01-02, at revision abc." in text
    assert "ONNX Runtime, asked about 1 of them: 1 equal, 0 WRONG." in text
    assert "| random/1 | pruned | 60% | 2/3 | a softmax (2) | equal |  |  |" in text
    assert "| random/2 | not built |" in text
    assert "| random/3 | not asked |" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_are_cut_exactly(name, tmp_path):
    family, _, member = name.partition("/")
    if importlib.util.find_spec(family) is None:
        pytest.skip(f"needs the package {family}, which is installed by hand (see tools/zoo.py)")
    lines = tmp_path / "cut.jsonl"
    command = [sys.executable, str(TOOLS / "zoo.py"), "run", "cut", str(lines), "--only", name]
    subprocess.run(command, check=True, capture_output=True)
    assert any(
        f'"name": "{member}"' in line and '"verdict": "p' in line for line in lines.read_text().splitlines()
    )
