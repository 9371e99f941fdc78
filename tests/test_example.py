"""The examples of the README and of the interface, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import hwprune

README = Path(__file__).resolve().parent.parent / "README.md"


class Mixed(nn.Module):
    """A residual sum, a concat, a depthwise convolution and a linear head after flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.side = nn.Conv2d(32, 24, 1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(56 * 4 * 4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        stem = self.stem(images)
        summed = torch.relu(self.left(stem) + stem)
        deep = torch.relu(self.norm(self.depthwise(summed)))
        joined = torch.cat([deep, torch.relu(self.side(summed))], dim=1)
        logits: torch.Tensor = self.head(self.pool(joined).flatten(1))
        return logits


def test_the_python_interface_on_a_network_of_ones_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mixed()
    images, labels = torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))
    profile = hwprune.load_profile("any-cpu-ort")
    compressor = hwprune.Compressor(model, images[:2], profile, hwprune.Speedup(1.2), total_steps=60)
    optimizer = compressor.wrap(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9))
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    result = compressor.finish([images])

    model.eval()
    result.model.eval()
    torch.testing.assert_close(result.model(images), model(images), atol=1e-5, rtol=1e-5)
    widths = {row.name: (row.width_before, row.width_after) for row in result.plan.rows}
    assert widths["stem.0"][1] < 32 or widths["side"][1] < 24
    assert result.model.left[0].out_channels == result.model.stem[0].out_channels  # tied by the sum
    assert result.model.depthwise.groups == result.model.stem[0].out_channels

    measured = result.report.turns
    assert min(turn.measured_us / turn.allowed_us for turn in measured) <= 1.1  # met, up to a busy machine

    prediction = hwprune.predict(result.model, profile, images[:1])
    assert 0 < prediction.total_us == sum(layer.latency_us for layer in prediction.layers)
    hwprune.export(result.model, tmp_path / "model.onnx", images[:2])
    from_file = hwprune.predict(tmp_path / "model.onnx", profile)
    assert from_file.total_us == pytest.approx(prediction.total_us, rel=0.15)
    timing = hwprune.measure(tmp_path / "model.onnx", profile, runs=50)
    assert timing.p10_us <= timing.median_us <= timing.p90_us
    assert timing.runs == 50
    hwprune.save(result, tmp_path / "slim")
    slim = hwprune.load(tmp_path / "slim", model=Mixed())
    slim.eval()
    assert torch.equal(slim(images), result.model(images))


def test_the_readme_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    exec(blocks[0], names)  # our own README
    assert (tmp_path / "model.onnx").is_file()
    assert isinstance(names["result"], hwprune.Result)
