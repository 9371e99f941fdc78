"""Folds the constants of dead channels into the biases behind them.

A dead channel is zero only where its activation of zero is; behind a sigmoid it is a half everywhere. A layer
that reads such a channel adds the constant times its weights to every output, which a bias does as well: in a
linear layer, and in a convolution where no zero padding lets the border see something else.

A constant is one only where it is the same for all data. It is therefore looked for on the example inputs, on
other data of the same shapes (masks that let everything through let half of it through) and, where the
network takes them, on inputs that are twice as long in all directions and in each of them: maps, sequences,
sets. What differs between them is not folded. A network that takes no larger inputs is folded for the sizes
of the example inputs.

The bias goes to the layer itself even where a batch norm follows: that subtracts the constant again with its
statistics, in training as in evaluation, whether the constant comes from a channel or from a bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from hwprune.graph.axes import BoolArray, ChannelAxis, kept_positions
from hwprune.graph.record import ExampleInputs, call_observed

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

    Layers whose dead channels are not the same everywhere and for all data are left out.
    """
    found = _observed(model, readers, example_inputs)
    if not any(constants.any() for constants in found.values()):
        return found
    try:
        again = _observed(model, readers, _other_data(example_inputs))
    except Exception:  # whatever the user's forward pass raises on such data: nothing is known to be constant
        return {}
    found = {name: each for name, each in found.items() if name in again and _same(each, again[name])}
    for larger in _larger(example_inputs):
        if not any(constants.any() for constants in found.values()):
            break
        try:
            again = _observed(model, readers, larger)
        except Exception:  # the network takes inputs of its own size only in that direction
            continue
        found = {name: each for name, each in found.items() if name in again and _same(each, again[name])}
    return found


def _observed(
    model: nn.Module, readers: Mapping[str, Any], example_inputs: ExampleInputs
) -> dict[str, Tensor]:
    """The constants of one forward pass."""
    found: dict[str, Tensor] = {}
    varies: set[str] = set()
    handles = []
    for name, keep in readers.items():

        def note(module: Any, args: Any, kwargs: Any, name: str = name, keep: Any = keep) -> None:
            features = args[0] if args else kwargs["input"]
            if features.ndim < 2 or features.shape[_channel_dim(module)] != module.weight.shape[1]:
                varies.add(name)  # channels that lie elsewhere: an input without a batch
                return
            lowest, highest = _bounds(features, _channel_dim(module))
            lowest[torch.from_numpy(keep)] = highest[torch.from_numpy(keep)] = 0.0
            if not (_same(lowest, highest) and _same(found.setdefault(name, lowest), lowest)):
                varies.add(name)

        handles.append(model.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True))
    call_observed(model, example_inputs, handles)
    return {name: constants for name, constants in found.items() if name not in varies}


def _same(left: Tensor, right: Tensor) -> bool:
    """Whether constants are equal but for rounding; a value that is no number equals nothing."""
    return bool((left - right).abs().max() <= ROUNDING * right.abs().max())


def _other_data(example_inputs: ExampleInputs) -> Any:
    """Inputs of the same shapes and types: noise added to numbers, integers and flags in another order.

    Where those are all alike, about half of them, and one at least, become zero, or one where they are zero.
    """
    generator = torch.Generator().manual_seed(0)

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.numel():
            return leaf
        if not leaf.is_floating_point():
            flat = leaf.flatten()
            if not bool((flat == flat[0]).all()):
                places = torch.randint(leaf.numel(), (leaf.numel(),), generator=generator)
                return flat[places.to(leaf.device)].view(leaf.shape)
            chosen = torch.rand(leaf.numel(), generator=generator) < 0.5
            chosen[-1] = True  # padding comes last
            another = torch.tensor(0 if bool(flat[0]) else 1, dtype=leaf.dtype, device=leaf.device)
            return torch.where(chosen.to(leaf.device), another, flat).view(leaf.shape)
        scale = leaf.nan_to_num(0.0, 0.0, 0.0).abs().mean().clamp_min(1.0)
        return leaf + scale * torch.randn(leaf.shape, generator=generator).to(leaf)

    return _mapped(other, example_inputs)


def _larger(example_inputs: ExampleInputs) -> Iterator[Any]:
    """Inputs whose maps are twice as long in every direction, then those twice as long in one dimension."""

    def maps(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim < 3:
            return leaf
        return leaf.repeat(1, 1, *[2] * (leaf.ndim - 2))

    yield _mapped(maps, example_inputs)
    tensors = [leaf for leaf in tree_leaves(example_inputs) if isinstance(leaf, Tensor)]
    for dim in range(1, max((tensor.ndim for tensor in tensors), default=0)):

        def longer(leaf: Any, dim: int = dim) -> Any:
            return leaf.repeat_interleave(2, dim) if isinstance(leaf, Tensor) and leaf.ndim > dim else leaf

        yield _mapped(longer, example_inputs)


def _mapped(change: Callable[[Any], Any], example_inputs: ExampleInputs) -> Any:
    """The inputs with every tensor changed; a mapping of a class of its own becomes a dictionary."""
    return tree_map(change, dict(example_inputs) if isinstance(example_inputs, Mapping) else example_inputs)


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
