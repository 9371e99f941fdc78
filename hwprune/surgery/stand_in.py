"""What stands in the network where the layers of a removed branch were: tensors of zeros, without weights.

The forward pass is the user's own code and stays as it is, so every layer that it calls needs something to
call. The first layers of a branch become zeros, later ones hand on what they are given; exporting then drops
the sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Size = Annotated[int, Field(ge=0, lt=2**31)]


class Dimension(BaseModel):
    """How long one dimension of an output is.

    Attributes:
        size: For the example inputs.
        of: The dimension of the input that it follows; ``None`` where it is always as long.
        per: How many positions of the input make one: a stride.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    size: Size
    of: Annotated[int, Field(ge=0, lt=8)] | None = None
    per: Annotated[int, Field(ge=1, lt=2**31)] = 1

    def resolve(self, shape: torch.Size) -> int:
        """The length for an input of that shape.

        >>> Dimension(size=4, of=2, per=2).resolve(torch.Size([1, 3, 9, 9]))
        5
        """
        return self.size if self.of is None else -(-shape[self.of] // self.per)


#: Elements that a stand-in may make whatever it is given: more are no layer, but a way to fill the memory.
MOST_ELEMENTS = 2**28


def _bounded(dimensions: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
    if math.prod(dimension.size for dimension in dimensions if dimension.of is None) > MOST_ELEMENTS:
        raise ValueError(f"at most {MOST_ELEMENTS} elements")
    return dimensions


Dimensions = Annotated[tuple[Dimension, ...], Field(max_length=8), AfterValidator(_bounded)]


class Absence(BaseModel):
    """What a layer that is no longer there returns.

    Attributes:
        passes: Whether it returns its first input, which is zero already, instead of zeros of its own.
        outputs: The dimensions of every tensor returned; ``None`` where ``None`` is returned.
        single: Whether it returns one tensor, not a tuple.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    passes: bool
    outputs: Annotated[tuple[Dimensions | None, ...], Field(min_length=1, max_length=8)]
    single: bool


class StandIn(nn.Module):
    """Returns zeros in the place of a layer of a removed branch.

    Args:
        absence: What it returns.
    """

    def __init__(self, absence: Absence) -> None:
        super().__init__()
        self.absence = absence

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros of the sizes that belong to the first tensor among the arguments."""
        source = first_tensor((args, kwargs))
        outputs = tuple(None if each is None else self._zeros(source, each) for each in self.absence.outputs)
        return outputs[0] if self.absence.single else outputs

    def _zeros(self, source: Tensor, dimensions: tuple[Dimension, ...]) -> Tensor:
        if self.absence.passes:
            return source
        dtype = source.dtype if source.is_floating_point() else torch.get_default_dtype()
        if _alike(dimensions, source.ndim):
            return torch.zeros_like(source, dtype=dtype)  # as wide as whatever comes
        sizes = [dimension.resolve(source.shape) for dimension in dimensions]
        return torch.zeros(sizes, dtype=dtype, device=source.device)

    def extra_repr(self) -> str:
        """What it returns, for printing the network."""
        return "passes on zeros" if self.absence.passes else "zeros"


def _alike(dimensions: tuple[Dimension, ...], rank: int) -> bool:
    """Whether these are the dimensions of the input."""
    follows = [dimension.of == place and dimension.per == 1 for place, dimension in enumerate(dimensions)]
    return len(dimensions) == rank and all(follows)


def first_tensor(tree: Any) -> Tensor:
    """The first tensor among arguments.

    Raises:
        ValueError: If there is none.
    """
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            return leaf
    raise ValueError("a layer of a removed branch is called without a tensor")


def absent_layers(model: nn.Module) -> dict[str, Absence]:
    """What stands for layers of removed branches in a network, by dotted name."""
    return {name: module.absence for name, module in model.named_modules() if isinstance(module, StandIn)}


def take_out(model: nn.Module, absences: Mapping[str, Absence]) -> None:
    """Puts stand-ins in the place of layers, in place.

    Args:
        model: The network.
        absences: Dotted name of every layer that leaves, and what stands for it.
    """
    for name, absence in absences.items():
        model.set_submodule(name, StandIn(absence))
