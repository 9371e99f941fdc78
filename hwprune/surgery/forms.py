"""Which convolutions of a network become smaller layers, and the change itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from hwprune.graph.axes import IntArray
from hwprune.surgery.convolutions import CroppedConvolution, LoweredConvolution, box_of, channels_of

FormKind = Literal["cropped", "lowered"]
#: Kind to the layer that takes the place of a convolution with these living positions.
LAYERS: Mapping[FormKind, Callable[[nn.Conv2d, IntArray], nn.Module]] = {
    "cropped": CroppedConvolution,
    "lowered": LoweredConvolution,
}


@dataclass(frozen=True, slots=True)
class Form:
    """What becomes of one convolution.

    Attributes:
        module: Its dotted name.
        kind: ``cropped`` to the living channels and the smallest box around the living places of the kernel,
            or ``lowered`` to a gather of the living values and a product.
        positions: Living positions of ``weight[0].flatten()``, ascending, at least one.
    """

    module: str
    kind: FormKind
    positions: tuple[int, ...]


def why_as_it_is(model: nn.Module, name: str) -> str | None:
    """Why the form of a layer cannot be changed; ``None`` where it can.

    Args:
        model: The network.
        name: Dotted name of the layer.
    """
    module = model.get_submodule(name)
    if type(module) is not nn.Conv2d:
        return f"a {type(module).__name__}, which may compute something else than a Conv2d"
    if not name:
        return "the network is nothing but this layer"
    if module.groups > 1:
        return f"its filters read {module.groups} different groups of inputs"
    if module.padding_mode != "zeros":
        return f"it pads with {module.padding_mode}"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "it has hooks"
    everywhere = model.named_modules(remove_duplicate=False)
    holders = Counter(id(each) for _name, other in everywhere for each in other._parameters.values())
    return "its weight is shared" if holders[id(module.weight)] > 1 else None


def living_positions(convolution: nn.Conv2d) -> IntArray:
    """Positions of ``weight[0].flatten()`` where some filter is not zero, ascending.

    Where none is, the first channel in the middle of the kernel stands for all: no layer without any.
    """
    weight = convolution.weight.detach()
    living = np.flatnonzero((weight != 0).any(0).flatten().cpu().numpy())
    if living.size:
        return living
    _outputs, _channels, rows, columns = weight.shape
    return np.array([rows // 2 * columns + columns // 2])


def possible_forms(name: str, convolution: nn.Conv2d) -> tuple[Form, ...]:
    """The smaller forms of one convolution: none where every position lives.

    Args:
        name: Its dotted name.
        convolution: A layer that :func:`why_as_it_is` has nothing to say about.
    """
    living = living_positions(convolution)
    shape = tuple(convolution.weight.shape)
    inside = math.prod(shape_in_form("cropped", shape, living)[1:])
    kinds: list[FormKind] = []
    if inside < math.prod(shape[1:]):
        kinds.append("cropped")
    if living.size < inside:  # a crop without dead positions is as small as it gets
        kinds.append("lowered")
    return tuple(Form(name, kind, tuple(living.tolist())) for kind in kinds)


def shape_in_form(kind: FormKind, shape: Sequence[int], positions: IntArray) -> tuple[int, ...]:
    """The shape of the weight of a convolution in another form.

    Args:
        kind: The form.
        shape: Of the weight now: outputs, inputs, rows, columns.
        positions: Living positions of its first filter, flattened.

    >>> shape_in_form("cropped", (8, 3, 3, 3), np.array([3, 4, 13, 23]))
    (8, 3, 1, 3)
    """
    if kind == "lowered":
        return (shape[0], positions.size, 1, 1)
    top, bottom, left, right = box_of(shape, positions)
    return (shape[0], channels_of(shape, positions).size, bottom - top, right - left)


def reshape(model: nn.Module, forms: Sequence[Form]) -> None:
    """Puts the smaller layers in the place of convolutions.

    Args:
        model: Changed in place.
        forms: At most one of each convolution.
    """
    for form in forms:
        convolution = model.get_submodule(form.module)
        assert isinstance(convolution, nn.Conv2d)  # as why_as_it_is has checked
        model.set_submodule(form.module, LAYERS[form.kind](convolution, np.array(form.positions)))
