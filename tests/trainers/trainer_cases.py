"""A network, data and options that the tests of the callbacks share."""

from __future__ import annotations

import torch
from torch import nn

from hwprune.targets import Keep
from hwprune.trainers import Options
from hwprune.workloads import load_dataset

EPOCHS, BATCH, SAMPLES = 6, 32, 256
TARGET = Keep(0.5)
#: Channels counted, nothing measured: what a callback does is the same.
OPTIONS = Options(measure=False)


class Network(nn.Module):
    """Two convolutions; a mapping with the loss where labels are given, as the Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        logits = self.layers(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def fitting_options() -> Options:
    """With inputs to fit the survivors on."""
    return Options(measure=False, reconstruct=torch.stack([image for image, _ in samples()]))


def samples() -> list[tuple[torch.Tensor, torch.Tensor]]:
    data = load_dataset("digits").first(SAMPLES)
    return list(zip(data.train_images, data.train_labels, strict=True))


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    """Bit for bit, buffers too."""
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
