"""Cuts channels out of a network: slices every tensor and corrects the sizes that modules remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.errors import GraphError
from hwprune.graph.axes import BoolArray, ChannelAxis, IntArray, kept_positions
from hwprune.graph.twin import copy_of

#: (tensor name, dimension) -> positions that stay, ascending
KeptPositions = Mapping[tuple[str, int], IntArray]


def rebuild(model: nn.Module, axes: Sequence[ChannelAxis], kept: Mapping[str, BoolArray]) -> nn.Module:
    """Returns a narrower copy of ``model``; the model itself is not touched.

    Args:
        model: The network the axes were found on.
        axes: Its channel axes.
        kept: Axis name to a mask of shape ``(width,)``; an axis not named keeps every channel.

    Returns:
        A network of the same classes, in the same mode, with smaller tensors.

    Raises:
        GraphError: If a mask does not fit its axis, keeps nothing, or cuts a module whose sizes
            are not understood.
    """
    check_masks(axes, kept)
    slim = copy_of(model)
    narrow(slim, kept_positions(axes, kept))
    return slim


def check_masks(axes: Sequence[ChannelAxis], kept: Mapping[str, BoolArray]) -> None:
    """Raises :class:`GraphError` where a mask fits no axis or keeps nothing."""
    by_name = {axis.name: axis for axis in axes}
    for name, mask in kept.items():
        if name not in by_name:
            raise GraphError(
                "no such channel axis", where=name, expected=f"one of {sorted(by_name)}", got=name
            )
        axis = by_name[name]
        if mask.shape != (axis.width,):
            raise GraphError(
                "the mask does not fit the channel axis",
                where=name,
                expected=f"shape ({axis.width},)",
                got=f"shape {mask.shape}",
            )
        if not mask.any():
            raise GraphError(
                "every channel of an axis would be cut",
                where=name,
                expected="at least one channel kept",
                got=0,
            )


def narrow(model: nn.Module, positions: KeptPositions) -> None:
    """Slices the tensors of ``model`` in place and corrects the sizes its modules remember.

    Args:
        model: The network to change.
        positions: For every tensor dimension that shrinks, the positions that stay.

    Raises:
        GraphError: If a module is cut whose remembered sizes are not understood; nothing is changed then.
    """
    holders = _holders(model)
    replacements: list[tuple[nn.Module, str, Tensor]] = []
    narrowed: dict[nn.Module, Remembered] = {}
    for tensor, dims in _by_tensor(positions).items():
        owner, _, name = tensor.rpartition(".")
        old = getattr(model.get_submodule(owner), name)
        new = _sliced(old, dims)
        for place, module, attribute in holders[id(old)]:
            narrowed.setdefault(module, Remembered(place, _sizes(module)))
            replacements.append((module, attribute, new))
    for module, remembered in narrowed.items():
        check_resizable(module, where=remembered.where)
    for module, attribute, new in replacements:
        setattr(module, attribute, new)
    for module, remembered in narrowed.items():
        resize(module, remembered)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a module was before its tensors were replaced.

    Attributes:
        where: Its dotted name.
        shapes: The shape of each tensor of its own.
    """

    where: str
    shapes: Mapping[str, tuple[int, ...]]


def _holders(model: nn.Module) -> dict[int, list[tuple[str, nn.Module, str]]]:
    """Every place a tensor is held at, by its identity: weights may be tied."""
    holders: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for place, module in model.named_modules():
        for name, tensor in _own_tensors(module).items():
            holders.setdefault(id(tensor), []).append((place, module, name))
    return holders


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module itself, tied ones under each of their names."""
    parameters = module.named_parameters(recurse=False, remove_duplicate=False)
    return dict(parameters) | dict(module.named_buffers(recurse=False, remove_duplicate=False))


def _sizes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in _own_tensors(module).items()}


def _by_tensor(positions: KeptPositions) -> dict[str, dict[int, IntArray]]:
    """The positions grouped by tensor."""
    grouped: dict[str, dict[int, IntArray]] = {}
    for (tensor, dim), keep in positions.items():
        grouped.setdefault(tensor, {})[dim] = keep
    return grouped


def _sliced(old: Tensor, dims: Mapping[int, IntArray]) -> Tensor:
    """The kept positions of a parameter or buffer, as one of the same kind."""
    new = old.detach()
    for dim, keep in dims.items():
        new = new.index_select(dim, torch.from_numpy(keep).to(new.device))
    return nn.Parameter(new.clone(), old.requires_grad) if isinstance(old, nn.Parameter) else new.clone()


# One entry per module type whose attributes repeat the shapes of its tensors. Looked up along the
# class hierarchy, so that a user's subclass is resized like its parent.
Resizer = Callable[[Any], None]


def _resize_convolution(module: Any) -> None:
    weight = module.weight
    depthwise = module.groups > 1 and module.groups == module.in_channels
    if depthwise:
        module.groups = weight.shape[0] * module.groups // module.out_channels
    module.out_channels = weight.shape[0]
    module.in_channels = weight.shape[1] * module.groups


def _resize_transposed_convolution(module: Any) -> None:
    weight = module.weight
    if module.groups > 1 and module.groups == module.in_channels:
        module.groups = weight.shape[0]
    module.in_channels = weight.shape[0]
    module.out_channels = weight.shape[1] * module.groups


def _resize_linear(module: Any) -> None:
    module.out_features, module.in_features = module.weight.shape


def _resize_norm(module: Any) -> None:
    tensors = (module.weight, module.running_mean, module.running_var)
    module.num_features = next(tensor for tensor in tensors if tensor is not None).shape[0]


def _resize_group_norm(module: Any) -> None:
    # Whole groups leave, so what is left of them is as wide as ever.
    module.num_groups = module.weight.shape[0] * module.num_groups // module.num_channels
    module.num_channels = module.weight.shape[0]


def _resize_layer_norm(module: Any) -> None:
    module.normalized_shape = tuple(module.weight.shape)


def _resize_prelu(module: Any) -> None:
    module.num_parameters = module.weight.shape[0]


def _resize_embedding(module: Any) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


RESIZERS: dict[type[nn.Module], Resizer] = {
    nn.Conv1d: _resize_convolution,
    nn.Conv2d: _resize_convolution,
    nn.Conv3d: _resize_convolution,
    nn.ConvTranspose1d: _resize_transposed_convolution,
    nn.ConvTranspose2d: _resize_transposed_convolution,
    nn.ConvTranspose3d: _resize_transposed_convolution,
    nn.Linear: _resize_linear,
    nn.modules.batchnorm._NormBase: _resize_norm,
    nn.GroupNorm: _resize_group_norm,
    nn.LayerNorm: _resize_layer_norm,
    nn.PReLU: _resize_prelu,
    nn.Embedding: _resize_embedding,
}


def check_resizable(module: nn.Module, *, where: str) -> None:
    """Checks that the sizes which ``module`` remembers can be made to agree with narrower tensors.

    Args:
        module: The module that is to be narrowed.
        where: Its dotted name, for the message.

    Raises:
        GraphError: If it is one of PyTorch's own layers and not in :data:`RESIZERS`: its sizes
            would silently disagree with its tensors.
    """
    if _resizer(module) is None and type(module).__module__.startswith("torch.nn."):
        raise GraphError(
            f"a layer of type {type(module).__name__} cannot be made narrower",
            where=where,
            expected="one of " + ", ".join(sorted(kind.__name__ for kind in RESIZERS)),
            got=type(module).__name__,
            hint="keep its channels by passing its name in keep=",
        )


def resize(module: nn.Module, remembered: Remembered) -> None:
    """Makes the sizes that ``module`` remembers agree with its tensors.

    Args:
        module: The module whose tensors were replaced.
        remembered: What it was before.
    """
    resizer = _resizer(module)
    if resizer is None:
        _resize_attributes(module, remembered.shapes)
    else:
        resizer(module)


def _resizer(module: nn.Module) -> Resizer | None:
    """The entry of the nearest ancestor that has one."""
    return next((RESIZERS[kind] for kind in type(module).__mro__ if kind in RESIZERS), None)


def _resize_attributes(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Corrects the integers in which a user's own layer repeats a size of its tensors.

    An integer is taken for a size where every dimension of that size has shrunk, and to one new size; what is
    taken for one and is none shows in the trial of the axis, before anything is trained.
    """
    became: dict[int, set[int]] = {}
    for name, shape in shapes.items():
        for before, after in zip(shape, getattr(module, name).shape, strict=True):
            became.setdefault(before, set()).add(after)
    for attribute, value in list(vars(module).items()):
        if type(value) is int and len(became.get(value, ())) == 1:
            setattr(module, attribute, *became[value])
