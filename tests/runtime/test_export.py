"""What is exported, and with which inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hwprune


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
