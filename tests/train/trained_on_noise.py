"""A training that is over in a second: four classes of noise, told apart by their mean."""

from __future__ import annotations

import torch
from torch import nn


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> torch.Tensor:
    """Makes some steps on batches of 16 images of 1x8x8, the same ones every time; the last batch."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        labels = torch.randint(0, 4, (16,), generator=generator)
        images = torch.randn(16, 1, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return images
