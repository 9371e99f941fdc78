"""Distillation: the network that is pruned also learns from the dense one.

Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from hwprune.errors import InputError


@dataclass(frozen=True, slots=True)
class Distillation:
    """How much of the loss comes from the dense network, and how soft its answers are.

    Attributes:
        weight: In (0, 1]; the labels have the rest.
        temperature: Logits are divided by it; above 1 the classes that the teacher finds less likely count
            for more.

    Raises:
        InputError: If a number is out of range.
    """

    weight: float
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise InputError(
                "the weight of the distillation is not one",
                where="--distill",
                expected="above 0, at most 1",
                got=self.weight,
            )
        if not 0 < self.temperature < math.inf:
            raise InputError(
                "the temperature of the distillation is not one",
                where="--temperature",
                expected="above 0",
                got=self.temperature,
            )

    def mix(self, loss: Tensor, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The loss from the labels and the divergence from the teacher, weighed.

        The divergence is multiplied by the temperature's square, which its gradient is divided by.

        Args:
            loss: From the labels, a mean over the batch.
            logits: Shape ``(batch, classes)``.
            teacher_logits: Same shape; nothing is learned through them.
        """
        divergence = nn.functional.kl_div(
            nn.functional.log_softmax(logits / self.temperature, dim=1),
            nn.functional.log_softmax(teacher_logits.detach() / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * divergence
