"""What the weights of a layer are multiplied by, as rows of a matrix: convolutions as matrix products."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.groups.shards import is_sharded

#: Layers whose outputs are a matrix product of patches of the input with the weights. No subclasses: they may
#: compute anything.
PLAIN_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
#: Samples of its inputs that equations for a layer are made of, where it has that many: so many times as many
#: as it has weights per output, within these bounds.
SAMPLES_PER_WEIGHT, LEAST_SAMPLES, MOST_SAMPLES = 4, 8192, 16384
#: For layers with more weights per output no equations are set up: they would fill gigabytes.
MOST_WEIGHTS = 8192
#: Numbers that are unfolded at a time.
_CHUNK = 1 << 24


def is_plain(module: nn.Module) -> bool:
    """Whether a module multiplies patches of its input by its own weights and does nothing else."""
    return type(module) in PLAIN_LAYERS and getattr(module, "groups", 1) == 1


def is_batched(layer: nn.Module, output: Tensor) -> bool:
    """Whether a plain layer was called with a batch, by what it computed."""
    weight = layer.state_dict()["weight"]
    return output.dim() > 1 and (isinstance(layer, nn.Linear) or output.dim() == weight.dim())


def rows_of(layer: nn.Module) -> Tensor:
    """A plain layer's weights, one row per output."""
    weight = layer.weight
    assert isinstance(weight, Tensor)  # of a plain layer
    return weight.detach().flatten(1)


def is_solvable(module: nn.Module) -> bool:
    """Whether least-squares equations can be set up for a module: it is plain, and its weights are at hand.

    Weights that are computed from others or spread over processes are not, nor are too many of them.
    """
    if not is_plain(module):
        return False
    weight = module._parameters.get("weight")
    at_hand = isinstance(weight, nn.Parameter) and not is_sharded(weight)
    return at_hand and rows_of(module).shape[1] <= MOST_WEIGHTS


def by_position(layer: nn.Module, output: Tensor) -> Tensor:
    """A plain layer's output in the shape ``(inputs, outputs, positions)``."""
    if isinstance(layer, nn.Linear):
        return output.reshape(output.shape[0], -1, output.shape[-1]).transpose(1, 2)
    return output.flatten(2)


def drawn_positions(layer: nn.Module, output: Tensor) -> Tensor:
    """Positions of a plain layer's output drawn at random, the same ones for equal shapes.

    Args:
        layer: A plain layer.
        output: What it computed for some inputs.

    Returns:
        Ascending, as many as give every input its part of the samples that the layer should have.
    """
    inputs, _, positions = by_position(layer, output).shape
    samples = min(max(SAMPLES_PER_WEIGHT * rows_of(layer).shape[1], LEAST_SAMPLES), MOST_SAMPLES)
    generator = torch.Generator().manual_seed(positions)
    drawn = torch.randperm(positions, generator=generator)[: math.ceil(samples / inputs)]
    return drawn.sort().values.to(output.device)


def arriving(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Which columns of a plain layer's weights are multiplied by anything but zero."""
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2).any(0)
    channels = inputs.flatten(2).any(2).any(0)
    return channels.repeat_interleave(rows_of(layer).shape[1] // len(channels))


def patches(layer: nn.Module, inputs: Tensor, positions: Tensor) -> Iterator[Tensor]:
    """What the weights of an output are multiplied by at some positions of it.

    Args:
        layer: A plain layer.
        inputs: What it is called with, the batch first.
        positions: Of the output, flattened.

    Yields:
        Shape ``(samples, weights)``, float32: all positions of the first inputs, then of the next ones.
    """
    if isinstance(layer, nn.Linear):
        flat = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
        yield flat[:, positions].flatten(0, 1).float()
        return
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)  # what else is plain
    kernel, stride, dilation = (_pair(value) for value in (layer.kernel_size, layer.stride, layer.dilation))
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    part = max(1, _CHUNK // (kernel[0] * kernel[1] * inputs[0].numel()))
    for some in torch.split(inputs, part):
        padded = nn.functional.pad(some.float(), _padding(layer), mode)
        padded = padded.unsqueeze(2) if padded.dim() == 3 else padded
        columns = nn.functional.unfold(padded, kernel, dilation, 0, stride)
        yield columns[:, :, positions].transpose(1, 2).flatten(0, 1)


def only_input(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The input of a layer that was called with it by place or by name."""
    (found,) = (*arguments, *named.values())
    assert isinstance(found, Tensor)  # plain layers take nothing else
    return found


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return (1, value[0]) if len(value) == 1 else (value[0], value[1])


def _padding(layer: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Padding of every side as :func:`torch.nn.functional.pad` takes it, the last dimension first."""
    sides: list[int] = []
    for at in reversed(range(len(layer.kernel_size))):
        if layer.padding == "valid":
            sides += [0, 0]
        elif layer.padding == "same":
            both = layer.dilation[at] * (layer.kernel_size[at] - 1)
            sides += [both // 2, both - both // 2]
        else:
            sides += [int(layer.padding[at])] * 2
    return sides
