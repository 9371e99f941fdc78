"""Folds the constants of dead channels into the biases behind them.

A dead channel is zero only where its activation of zero is; behind a sigmoid it is a half everywhere. A layer
that reads such a channel adds the constant times its weights to every output, which a bias does as well:
always in a linear layer, and in a convolution where no zero padding lets the border see something else.

The bias goes to the layer itself even where a batch norm follows: that subtracts the constant again with its
statistics, in training as in evaluation, whether the constant comes from a channel or from a bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.graph.axes import BoolArray, ChannelAxis, kept_positions
from hwprune.graph.record import ExampleInputs, call_model, evaluation_mode

#: Layers that a constant can be folded into, and the dimension of their input that the channels lie along.
CHANNEL_DIM: dict[type[nn.Module], int] = {nn.Linear: -1, nn.Conv1d: 1, nn.Conv2d: 1, nn.Conv3d: 1}
#: Largest spread of a channel over all positions that is taken for rounding, as a fraction of its value.
ROUNDING = 1e-6


def fold_constants(
    masked: nn.Module,
    slim: nn.Module,
    axes: Sequence[ChannelAxis],
    kept: Mapping[str, BoolArray],
    example_inputs: ExampleInputs,
) -> tuple[str, ...]:
    """Adds what dead channels contribute to the biases of a slim network, in place.

    What cannot be folded exactly (a padded convolution, a layer that makes the channel vary) stays as it is,
    and shows when the networks are compared.

    Args:
        masked: The full-width network with its dead channels at zero; not touched.
        slim: The network rebuilt from it.
        axes: Its channel axes.
        kept: What was kept of each axis.
        example_inputs: What it is called with.

    Returns:
        Dotted names of the layers whose bias now holds a constant.
    """
    positions = kept_positions(axes, kept)
    dead = {
        tensor.removesuffix(".weight"): positions[tensor, dim]
        for tensor, dim in positions
        if dim == 1 and tensor.endswith(".weight")
    }
    readers = {name: keep for name, keep in dead.items() if _foldable(masked.get_submodule(name))}
    folded = []
    for name, constants in _constants(masked, readers, example_inputs).items():
        if not constants.any():
            continue
        weight = masked.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        shift = torch.einsum("oi...,i->o", weight.detach().double(), constants)
        rows = positions.get((f"{name}.weight", 0))
        _add_bias(slim.get_submodule(name), shift if rows is None else shift[torch.from_numpy(rows)])
        folded.append(name)
    return tuple(folded)


def _foldable(module: nn.Module) -> bool:
    """Whether a constant input of the layer is a constant output."""
    if not takes_bias(module):
        return False
    padding = getattr(module, "padding", 0)
    unpadded = padding == "valid" if isinstance(padding, str) else not np.any(padding)
    return getattr(module, "groups", 1) == 1 and (unpadded or _pads_nothing(module))


def _pads_nothing(module: Any) -> bool:
    """Whether ``padding="same"`` of a kernel of one position."""
    return module.padding == "same" and all(size == 1 for size in module.kernel_size)


def _constants(
    model: nn.Module, readers: Mapping[str, Any], example_inputs: ExampleInputs
) -> dict[str, Tensor]:
    """What every layer reads from its dead channels, shape ``(inputs,)``; zero for living ones.

    Layers whose dead channels are not the same everywhere are left out.
    """
    found: dict[str, Tensor] = {}
    varies: set[str] = set()
    handles = []
    for name, keep in readers.items():

        def note(module: Any, args: Any, name: str = name, keep: Any = keep) -> None:
            lowest, highest = _bounds(args[0], _channel_dim(module))
            if lowest.shape != module.weight.shape[1:2]:
                varies.add(name)  # channels that lie elsewhere: an input without a batch
                return
            lowest[torch.from_numpy(keep)] = highest[torch.from_numpy(keep)] = 0.0
            spread = float((highest - lowest).max())
            again = found.setdefault(name, lowest)
            if spread > ROUNDING * float(highest.abs().max()) or not torch.equal(again, lowest):
                varies.add(name)

        handles.append(model.get_submodule(name).register_forward_pre_hook(note))
    try:
        with evaluation_mode(model), torch.no_grad():
            call_model(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: constants for name, constants in found.items() if name not in varies}


def _channel_dim(module: nn.Module) -> int:
    return next(dim for kind, dim in CHANNEL_DIM.items() if isinstance(module, kind))


def _bounds(features: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every channel, shape ``(channels,)``."""
    rows = features.detach().double().movedim(channel_dim, 0).flatten(1)
    return rows.amin(1), rows.amax(1)


def _add_bias(module: Any, shift: Tensor) -> None:
    """Adds to the bias of a layer; gives it one where it has none."""
    shift = shift.to(module.weight)
    if module.bias is None:
        module.bias = nn.Parameter(shift.clone(), module.weight.requires_grad)
    else:
        module.bias.detach().add_(shift)


def takes_bias(module: nn.Module) -> bool:
    """Whether a layer is of a kind that constants are folded into."""
    return any(isinstance(module, kind) for kind in CHANNEL_DIM)


def new_bias(module: Any) -> Tensor:
    """A bias of zeros for a layer without one, shape ``(outputs,)``."""
    zeros: Tensor = module.weight.new_zeros(module.weight.shape[0])
    return zeros


def give_biases(model: nn.Module, names: Sequence[str]) -> None:
    """Gives layers that have no bias one of zeros, in place.

    Args:
        model: The network.
        names: Dotted names of the layers.
    """
    for name in names:
        module = model.get_submodule(name)
        if module.bias is None:
            _add_bias(module, new_bias(module))
