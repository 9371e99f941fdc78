"""What is exported, and with which inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hwprune
from hwprune.runtime.export import Exported
from hwprune.runtime.onnx_values import read_values
from hwprune.runtime.timing import measure


class Elsewhere(Tensor):
    """A tensor that has to be brought to the processor, as those of an accelerator."""

    def detach(self) -> Elsewhere:
        return super().detach().as_subclass(Elsewhere)

    def cpu(self, *_arguments: Any, **_options: Any) -> Tensor:
        return self.as_subclass(Tensor)


class Scaled(nn.Module):
    """A convolution, scaled by a factor that comes in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor, factors: list[Tensor]) -> Tensor:
        return self.convolution(images) * factors[0]


def test_inputs_are_brought_to_the_processor_without_their_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor] = []
    original = torch.onnx.export

    def export(model: nn.Module, args: tuple[Any, ...], **options: Any) -> Any:
        given.extend([args[0], args[1][0]])
        return original(model, args, **options)

    monkeypatch.setattr(torch.onnx, "export", export)
    images = torch.zeros(2, 3, 8, 8).as_subclass(Elsewhere)
    hwprune.export(Scaled(), tmp_path / "scaled.onnx", (images, [torch.ones(1, requires_grad=True)]))
    assert {type(tensor) for tensor in given} == {Tensor}
    assert not any(tensor.requires_grad for tensor in given)


class OneByOne(nn.Module):
    """A network that goes through its images one after the other, and so fixes how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.convolution(image[None])[0] for image in images])


@pytest.mark.parametrize(("asked", "written"), [(None, 2), (1, 1), (3, 3)])
def test_a_batch_size_that_the_network_fixes_is_told_and_the_one_asked_for(
    tmp_path: Path, asked: int | None, written: int
) -> None:
    path = tmp_path / "fixed.onnx"
    exported = hwprune.export(OneByOne(), path, torch.zeros(2, 3, 8, 8), batch=asked)
    assert not exported.dynamic_batch
    assert "batch size is fixed" in exported.note
    assert [item.shape for item in read_values(path).inputs] == [(written, 3, 8, 8)]
    timing = measure(path, hwprune.load_profile("x86-avx2-ort"), runs=1)
    assert timing.environment["batch"] == written


def test_an_open_batch_size_stays_open(tmp_path: Path) -> None:
    exported = hwprune.export(nn.Conv2d(3, 4, 3), tmp_path / "open.onnx", torch.zeros(1, 3, 8, 8), batch=1)
    assert exported == Exported(tmp_path / "open.onnx", dynamic_batch=True)
    assert read_values(exported.path).inputs[0].shape[0] is None
