"""LeNet-300-100, the fully connected network on which single weights are usually pruned first."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LeNet300(nn.Module):
    """Two hidden layers of 300 and 100 (LeCun et al. 1998), with ReLU; ``lenet300:LeNet300`` to hwprune."""

    def __init__(self, in_channels: int, image_size: int, classes: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(in_channels * image_size**2, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(n, c, s, s)`` to logits ``(n, classes)``."""
        hidden = torch.relu(self.fc2(torch.relu(self.fc1(self.flatten(images)))))
        logits: Tensor = self.fc3(hidden)
        return logits
