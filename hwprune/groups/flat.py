"""The weight matrices of a network as one long vector, layer after layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hwprune.errors import GraphError, InputError

#: Kinds of modules and the parameters of theirs that are weight matrices: outputs first, then inputs.
WEIGHT_MATRICES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Conv1d: ("weight",),
    nn.Conv2d: ("weight",),
    nn.Conv3d: ("weight",),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight matrix.

    Attributes:
        name: Dotted name of its module.
        tensor: The parameter, shape ``(outputs, inputs, ...)``.
    """

    name: str
    tensor: nn.Parameter


#: Root mean square of the shares of the groups of a dense network. The strengths of the penalties are chosen
#: for channels, which are a few hundred to a layer or so; weights are millions.
TYPICAL_SHARE = 0.1
#: A layer without groups: dotted name, number of weights, and why.
LeftDense = tuple[str, int, str]


def find_layers(model: nn.Module, keep: Sequence[str] = ()) -> tuple[list[Layer], list[LeftDense]]:
    """The weight matrices of a network, in the order of its modules; each parameter once.

    Biases, norms, embeddings and transposed convolutions are no weight matrices here.

    Args:
        model: The network.
        keep: Dotted names of modules that stay dense.

    Returns:
        Those that may be pruned, and those that are kept.

    Raises:
        InputError: If ``keep`` names a module without a weight matrix.
        GraphError: If none may be pruned.
    """
    found: dict[int, Layer] = {}
    for name, module in model.named_modules():
        for tensor in _weight_matrices(module):
            found.setdefault(id(tensor), Layer(name, tensor))
    known = {layer.name for layer in found.values()}
    if not set(keep) <= known:
        raise InputError(
            "no such layer to keep",
            where="keep",
            expected=f"some of {sorted(known)}",
            got=sorted(set(keep) - known),
        )
    layers = [layer for layer in found.values() if layer.name not in keep]
    if not layers:
        raise GraphError(
            "nothing can be pruned: the network has no weight matrix",
            expected="at least one linear layer or convolution that is not kept",
        )
    kept = [layer for layer in found.values() if layer.name in keep]
    return layers, [(layer.name, layer.tensor.numel(), "kept on request") for layer in kept]


def _weight_matrices(module: nn.Module) -> list[nn.Parameter]:
    names = [name for kind, names in WEIGHT_MATRICES.items() if isinstance(module, kind) for name in names]
    tensors = [getattr(module, name) for name in names]
    return [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]


def inputs_last(tensor: Tensor) -> Tensor:
    """A view of shape ``(outputs, ..., inputs)``: weights of consecutive inputs are neighbours."""
    return tensor.movedim(1, -1)


class FlatWeights:
    """Single weights as the members of a :class:`~hwprune.groups.base.GroupSet`, in layers end to end.

    Every method makes at most one vector of all members. Inputs run fastest, see :func:`inputs_last`.

    Args:
        layers: At least one.

    Attributes:
        layers: The weight matrices.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self._device = self.layers[0].tensor.device

    @property
    def member_count(self) -> int:
        """Number of weights."""
        return sum(layer.tensor.numel() for layer in self.layers)

    @property
    def group_count(self) -> int:
        """Number of weights."""
        return self.member_count

    def parameters(self) -> list[Tensor]:
        """The weight matrices."""
        return [layer.tensor for layer in self.layers]

    def slices(self) -> Iterator[tuple[Layer, slice]]:
        """Every layer with its place in the vector."""
        start = 0
        for layer in self.layers:
            yield layer, slice(start, start + layer.tensor.numel())
            start += layer.tensor.numel()

    def member_norms(self) -> Tensor:
        """Magnitude of every weight, shape ``(members,)``."""
        norms = torch.empty(self.member_count, device=self._device)
        for layer, place in self.slices():
            view = inputs_last(layer.tensor.detach())
            torch.abs(view, out=norms[place].view(view.shape))
        return norms

    def member_products(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """Product of every weight at two points, given as tensors like :meth:`parameters`."""
        products = torch.empty(self.member_count, device=self._device)
        for (_layer, place), one, other in zip(self.slices(), left, right, strict=True):
            view = inputs_last(one.detach())
            torch.mul(view, inputs_last(other.detach()), out=products[place].view(view.shape))
        return products

    def scale_(self, factors: Tensor) -> None:
        """Multiplies every weight by its factor or flag, shape ``(members,)``, in place."""
        for layer, place in self.slices():
            _scale_(layer.tensor.detach(), factors[place])

    def momenta_scale_(self, optimizer: torch.optim.Optimizer, factors: Tensor) -> None:
        """Multiplies the optimiser's state of every weight likewise, in place."""
        for layer, place in self.slices():
            for value in optimizer.state.get(layer.tensor, {}).values():
                if isinstance(value, Tensor) and value.shape == layer.tensor.shape:
                    _scale_(value, factors[place])

    def groups_alive(self, alive: Tensor) -> int:
        """Number of living weights."""
        return int(torch.count_nonzero(alive))

    def counts(self, alive: Tensor) -> dict[str, tuple[int, int]]:
        """Weights of every layer and those that live, by dotted name, for flags ``(members,)``."""
        totals: dict[str, tuple[int, int]] = {}
        for layer, place in self.slices():
            before, after = totals.get(layer.name, (0, 0))
            totals[layer.name] = (
                before + layer.tensor.numel(),
                after + int(torch.count_nonzero(alive[place])),
            )
        return totals


def _scale_(tensor: Tensor, factors: Tensor) -> None:
    view = inputs_last(tensor)
    view.mul_(factors.view(view.shape))
