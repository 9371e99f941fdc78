"""The exported network against the masked one, in the runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hwprune
from hwprune.delivery import verify_exported
from hwprune.errors import GraphError, VerificationError
from hwprune.runtime.export import export

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
