"""The exported network against the masked one, in the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import hwprune
from hwprune.delivery import as_deployed, verify_exported
from hwprune.device.library import load_profile
from hwprune.errors import GraphError, VerificationError
from hwprune.runtime.export import export
from hwprune.runtime.half import is_half
from hwprune.workloads import load_dataset, make_model

IMAGES = torch.randn(8, 512, generator=torch.Generator().manual_seed(0))


class Cancelling(nn.Module):
    """What is left of its outputs is rounding: the same sum in two orders, one taken from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(512, 4)
        self.register_buffer("order", torch.randperm(512, generator=torch.Generator().manual_seed(1)))

    def forward(self, images: Tensor) -> Tensor:
        weight, order = self.layer.weight, self.order
        there = nn.functional.linear(images, weight)
        return there - nn.functional.linear(images[:, order], weight[:, order])


def test_outputs_that_are_rounding_may_differ_as_rounding_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Cancelling().eval()
    export(model, tmp_path / "model.onnx", IMAGES)
    profile = hwprune.load_profile("x86-avx2-ort")
    assert verify_exported(model, tmp_path / "model.onnx", IMAGES, profile) < 1e-5


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_a_small_mistake_of_the_export_is_seen_however_small_outputs_are(
    tmp_path: Path, scale: float
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(512, 4).eval()
    with torch.no_grad():
        model.weight *= scale
        model.bias *= scale
    profile = hwprune.load_profile("x86-avx2-ort")
    export(model, tmp_path / "model.onnx", IMAGES)
    assert verify_exported(model, tmp_path / "model.onnx", IMAGES, profile) < 1e-5 * scale
    with torch.no_grad():
        model.weight[0] *= 1.01
    with pytest.raises(VerificationError, match="exported network"):
        verify_exported(model, tmp_path / "model.onnx", IMAGES, profile)


class Between(nn.Module):
    """Takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(512, 4), nn.Linear(3, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.left(left) - self.right(right)


def test_networks_of_several_inputs_are_compared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = Between().eval(), (IMAGES, torch.randn(8, 3))
    export(model, tmp_path / "model.onnx", inputs)
    profile = hwprune.load_profile("x86-avx2-ort")
    assert verify_exported(model, tmp_path / "model.onnx", inputs, profile) < 1e-5
    with pytest.raises(GraphError, match="expected 1 tensors, got left, right"):
        verify_exported(model, tmp_path / "model.onnx", IMAGES, profile)
    with torch.no_grad():
        model.right.weight[0] *= 1.1
    with pytest.raises(VerificationError, match="exported network"):
        verify_exported(model, tmp_path / "model.onnx", inputs, profile)


def test_a_device_of_half_precision_gets_the_files_that_are_timed(tmp_path: Path) -> None:
    data = load_dataset("digits").first(64)
    model = make_model("lenet5", in_channels=1, image_size=8, classes=10, seed=0).eval()
    paths = {name: tmp_path / f"{name}.onnx" for name in ("dense", "slim")}
    for path in paths.values():
        export(model, path, data.test_images[:2])
    spec = load_profile("any-cpu-ort").runtime.model_copy(update={"precision": "fp16"})
    deployed = as_deployed(paths, spec, data)
    images = data.test_images[:32].numpy()
    for name, path in paths.items():
        assert deployed[name] != path
        assert is_half(deployed[name])
        assert not is_half(path)
        assert deployed[name].stat().st_size < 0.6 * path.stat().st_size
        outputs = []
        for file in (path, deployed[name]):
            session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            outputs.append(session.run(None, {session.get_inputs()[0].name: images})[0])
        assert 0 < np.abs(outputs[0] - outputs[1]).max() < 2e-2 * np.abs(outputs[0]).max()
