"""Weights that are numbers: what is not is told where it arises, not by those who stumble over it later."""

from __future__ import annotations

import torch
from torch import nn

from hwprune.errors import TrainingError
from hwprune.processes import alike

_HINT = "try a lower learning rate, and look for odd values in the data"


def check_finite(model: nn.Module) -> None:
    """Raises where a network is of no use any more.

    Args:
        model: Whole parameters must be finite. Buffers may be infinite, as masks of attention are, but must
            not be NaN.

    Raises:
        TrainingError: If they are not; it names the first tensor.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise not_finite(name)
    for name, buffer in model.named_buffers():
        if bool(torch.isnan(buffer).any()):
            raise not_finite(name)


def not_finite(where: str) -> TrainingError:
    """The error to raise for weights that are not finite.

    Args:
        where: The parameter or layer.
    """
    error = TrainingError(
        "the weights are not finite", where=where, expected="numbers", got="NaN or infinity", hint=_HINT
    )
    return alike(error)  # gradients are summed over all processes
