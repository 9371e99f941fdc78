"""Copies of networks with random parameters: trained or fresh ones hide mistakes behind zeros and ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hwprune.graph.record import ExampleInputs
from hwprune.graph.twin import copy_of
from hwprune.surgery.outputs import outputs_of


def randomised(model: nn.Module, generator: torch.Generator, *, near: bool = False) -> nn.Module:
    """A copy with random floating-point parameters and buffers, scaled so that activations stay finite.

    Args:
        model: The network; not touched.
        generator: Source of the numbers.
        near: Draw what is not zero from around what it is, with its sign: of what must be positive, say.
    """
    twin = copy_of(model)
    with torch.no_grad():
        for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
            if tensor.is_floating_point():
                drawn = _random_like(tensor, name, generator)
                tensor.copy_(_around(tensor, drawn, generator) if near else drawn)
    return twin


def _random_like(tensor: Tensor, name: str, generator: torch.Generator) -> Tensor:
    drawn = torch.empty_like(tensor).copy_(torch.randn(tensor.shape, generator=generator))
    if name.endswith("running_var"):
        return drawn.square().add(0.5)
    if tensor.ndim >= 2:
        return drawn.mul(math.sqrt(2.0 / max(tensor[0].numel(), 1)))
    return drawn.mul(0.3).add(1.0 if name.endswith("weight") else 0.0)


def _around(tensor: Tensor, drawn: Tensor, generator: torch.Generator) -> Tensor:
    """Values within half of those of a tensor; others where it is zero."""
    factors = torch.empty_like(tensor).copy_(1 + torch.rand(tensor.shape, generator=generator) - 0.5)
    return torch.where(tensor == 0, drawn, tensor * factors)


def finite_copy(model: nn.Module, example_inputs: ExampleInputs, generator: torch.Generator) -> nn.Module:
    """A randomised copy in evaluation mode that computes numbers: near the network's own where it must be.

    Args:
        model: The network; not touched.
        example_inputs: What it is called with.
        generator: Source of the numbers.
    """
    dense = randomised(model, generator).eval()
    try:
        if not any(bool(output.isnan().any()) for output in outputs_of(dense, example_inputs)):
            return dense
    except Exception:  # the user's forward pass; the trials say of every axis what it raises
        return dense
    return randomised(model, generator, near=True).eval()
