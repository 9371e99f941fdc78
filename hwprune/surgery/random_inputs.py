"""Random inputs, on which a network must be right as well as on the ones it was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hwprune.graph.record import ExampleInputs, evaluation_mode
from hwprune.surgery.outputs import outputs_of

#: No usual one: an example that was drawn from seed 0 would come out again.
SEED = 7919


def random_inputs(example_inputs: ExampleInputs, seed: int = SEED) -> ExampleInputs:
    """Random numbers of the shapes and types of the example.

    Args:
        example_inputs: Real numbers become normal ones, whole numbers such between the least and the
            greatest of their tensor (tokens, positions); everything else stays as it is.
        seed: Of the random numbers.

    >>> tokens, length = random_inputs((torch.tensor([[5, 7, 7]]), 3))
    >>> tokens.shape, bool(((tokens >= 5) & (tokens <= 7)).all()), length
    (torch.Size([1, 3]), True, 3)
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.numel() or leaf.dtype == torch.bool or leaf.is_complex():
            return leaf
        if leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator).to(leaf)
        least, greatest = int(leaf.min()), int(leaf.max())
        return torch.randint(least, greatest + 1, leaf.shape, generator=generator).to(leaf)

    made: ExampleInputs = tree_map(drawn, example_inputs)
    return made


def with_random_inputs(model: nn.Module, batches: Sequence[ExampleInputs]) -> list[ExampleInputs]:
    """The same batches, and one of random numbers where the network computes finite ones from it.

    Args:
        model: Called in evaluation mode; its mode is left as it was.
        batches: The first of them is the example, see :func:`random_inputs`.
    """
    try:
        drawn = random_inputs(batches[0])
        with evaluation_mode(model):
            taken = all(bool(output.isfinite().all()) for output in outputs_of(model, drawn))
    except Exception:  # tensors that cannot be drawn, or a forward pass that refuses what it was not made for
        return list(batches)
    return [*batches, drawn] if taken else list(batches)
