"""Calibration on training images, and accuracy in a runtime."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import hwprune
from hwprune import quantization
from hwprune.device.profile import RuntimeSpec
from hwprune.errors import InputError
from hwprune.quantization import accuracy_in_runtime, quantize_on, scores
from hwprune.runtime.quantize import is_quantized
from hwprune.workloads import Dataset, accuracy


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Two classes told apart by where the bright half of an image is; the training images come sorted."""
    generator = torch.Generator().manual_seed(0)

    def images(labels: torch.Tensor) -> torch.Tensor:
        drawn = 0.3 * torch.randn(len(labels), 1, 8, 8, generator=generator)
        drawn[:, :, :4] += labels[:, None, None, None]
        drawn[:, :, 4:] += 1 - labels[:, None, None, None]
        return drawn

    train, test = torch.arange(150) // 75, torch.arange(90) % 2
    return Dataset("halves", images(train), train, images(test), test, 2)


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 2)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(dataset.train_images), dataset.train_labels).backward()
        optimizer.step()
    return network


@pytest.fixture(scope="module", params=["open", "fixed"])
def single(
    request: pytest.FixtureRequest,
    model: nn.Module,
    dataset: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The network in single precision, with an open batch size and with one of 40."""
    path = tmp_path_factory.mktemp("quantization") / "single.onnx"
    hwprune.export(model, path, dataset.test_images[:2])
    if request.param == "fixed":
        proto = onnx.load(path)
        for item in (*proto.graph.input, *proto.graph.output):
            item.type.tensor_type.shape.dim[0].dim_value = 40
        del proto.graph.value_info[:]
        onnx.save(proto, path)
    return path


def test_accuracy_in_the_runtime_is_that_of_pytorch(single: Path, model: nn.Module, dataset: Dataset) -> None:
    expected = accuracy(model, dataset.test_images, dataset.test_labels)
    assert accuracy_in_runtime(single, RuntimeSpec(kind="onnxruntime"), dataset) == expected
    assert expected > 0.95


def test_a_network_is_calibrated_on_training_images_of_every_class(
    single: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    original = quantization.quantize

    def recording(source: Path, target: Path, batches: list[dict[str, object]]) -> None:
        seen.extend(torch.from_numpy(feed[name]) for feed in batches for name in feed)
        original(source, target, batches)

    monkeypatch.setattr(quantization, "quantize", recording)
    target = tmp_path / "quantized.onnx"
    assert quantize_on(dataset, single, target, 60) == 60
    tops = torch.cat(seen)[:, 0, :4].mean(dim=(1, 2))
    assert 20 <= int((tops > 0.5).sum()) <= len(tops) - 20
    assert is_quantized(target)
    result = scores(dataset, single, target, "onnxruntime", 60)
    assert result.before > 0.95
    assert abs(result.after - result.before) < 0.05
    assert quantize_on(dataset, single, target, 1000) == len(dataset.train_images)
    with pytest.raises(InputError, match="calibrate"):
        quantize_on(dataset, single, target, 0)
