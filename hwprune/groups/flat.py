"""The weight matrices of a network as one long vector, layer after layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from hwprune.errors import GraphError, InputError
from hwprune.groups.shards import common_group, is_first_of, local, rows_of, sum_over

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
        parameter: Dotted name of the parameter.
        tensor: The parameter, shape ``(outputs, inputs, ...)``.
    """

    name: str
    parameter: str
    tensor: nn.Parameter


#: Root mean square of the shares of the groups of a dense network. The strengths of the penalties are chosen
#: for channels, which are a few hundred to a layer or so; weights are millions.
TYPICAL_SHARE = 0.1
#: A layer or parameter without groups: dotted name, number of weights, and why.
LeftDense = tuple[str, int, str]


def find_layers(model: nn.Module, keep: Sequence[str] = ()) -> tuple[list[Layer], list[LeftDense]]:
    """The weight matrices of a network, in the order of its modules; each parameter once.

    Biases, norms, embeddings, transposed convolutions, and what layers of other kinds hold are no weight
    matrices here. Of those, parameters of two and more dimensions are told among the ones that stay dense.

    Args:
        model: The network.
        keep: Dotted names of modules that stay dense.

    Returns:
        Those that may be pruned, and those that stay dense.

    Raises:
        InputError: If ``keep`` names a module without a weight matrix.
        GraphError: If none may be pruned.
    """
    found: dict[int, Layer] = {}
    for name, module in model.named_modules():
        for attribute, tensor in _weight_matrices(module):
            path = f"{name}.{attribute}" if name else attribute
            found.setdefault(id(tensor), Layer(name, path, tensor))
    known = {layer.name for layer in found.values()}
    if not set(keep) <= known:
        raise InputError(
            "no such layer to keep",
            where="keep",
            expected=f"some of {sorted(known)}",
            got=sorted(set(keep) - known),
        )
    layers = [layer for layer in found.values() if layer.name not in keep]
    kept = [layer for layer in found.values() if layer.name in keep]
    dense = [(layer.name, layer.tensor.numel(), "kept on request") for layer in kept]
    dense += [other for path in _others(model, found) if (other := _left_dense(model, path)) is not None]
    if not layers:
        raise GraphError(
            "nothing can be pruned: the network has no weight matrix",
            expected="at least one linear layer or convolution that is not kept",
            got="; ".join(f"{name}: {reason}" for name, _weights, reason in dense) or None,
        )
    return layers, dense


def _others(model: nn.Module, found: Collection[int]) -> list[str]:
    """Dotted names of all other parameters, each once."""
    return [path for path, tensor in model.named_parameters() if id(tensor) not in found]


def _left_dense(model: nn.Module, path: str) -> LeftDense | None:
    """What is told of a parameter that is no weight matrix; nothing of biases, scales and the like."""
    tensor = model.get_parameter(path)
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return None
    owner, _, attribute = path.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(module, ParametrizationList):
        return path, tensor.numel(), "a weight is computed from it"
    kind = type(module).__name__
    return path, tensor.numel(), f"{attribute} of {kind} is not known as a weight matrix"


def _weight_matrices(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    names = [name for kind, names in WEIGHT_MATRICES.items() if isinstance(module, kind) for name in names]
    tensors = [(name, getattr(module, name)) for name in names]
    return [(name, tensor) for name, tensor in tensors if isinstance(tensor, nn.Parameter)]


def inputs_last(tensor: Tensor) -> Tensor:
    """A view of shape ``(outputs, ..., inputs)``: weights of consecutive inputs are neighbours."""
    return tensor.movedim(1, -1)


class LayerGroups:
    """Members of the weight matrices of a network, layer after layer in one vector.

    What a member of a layer is, a subclass says with :meth:`members_of`.

    Args:
        layers: At least one.

    Attributes:
        layers: The weight matrices.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._take(layers)

    def members_of(self, layer: Layer) -> int:
        """Number of members of one layer."""
        return layer.tensor.numel()

    def rebind(self, model: nn.Module) -> None:
        """Takes the weight matrices anew, after others were put in their place or the network was moved.

        Raises:
            InputError: If they are spread over processes otherwise than ``fully_shard`` does.
        """
        self._take([replace(layer, tensor=model.get_parameter(layer.parameter)) for layer in self.layers])

    def _take(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self._device = self.layers[0].tensor.device
        self._rows = [rows_of(layer.tensor, layer.parameter) for layer in self.layers]
        self._sharers = common_group(self._rows)

    @property
    def member_count(self) -> int:
        """Number of members."""
        return sum(self.members_of(layer) for layer in self.layers)

    @property
    def group_count(self) -> int:
        """Number of members: each is a group."""
        return self.member_count

    def parameters(self) -> list[Tensor]:
        """The weight matrices."""
        return [layer.tensor for layer in self.layers]

    def slices(self) -> Iterator[tuple[Layer, slice]]:
        """Every layer with its place in the vector."""
        start = 0
        for layer in self.layers:
            yield layer, slice(start, start + self.members_of(layer))
            start += self.members_of(layer)

    def groups_alive(self, alive: Tensor) -> int:
        """Number of living members."""
        return int(torch.count_nonzero(alive))

    def members_alive(self, alive: Tensor) -> dict[str, int]:
        """Living members of every layer, by dotted name."""
        return {name: after for name, (_before, after) in self.counts(alive).items()}

    def counts(self, alive: Tensor) -> dict[str, tuple[int, int]]:
        """Members of every layer and those that live, by dotted name, for flags ``(members,)``."""
        totals: dict[str, tuple[int, int]] = {}
        for layer, place in self.slices():
            before, after = totals.get(layer.name, (0, 0))
            totals[layer.name] = (
                before + self.members_of(layer),
                after + int(torch.count_nonzero(alive[place])),
            )
        return totals


class FlatWeights(LayerGroups):
    """Single weights as the members of a :class:`~hwprune.groups.base.GroupSet`, in layers end to end.

    Every method makes at most one vector of all members. Inputs run fastest, see :func:`inputs_last`.
    """

    def _slices_at_hand(self) -> Iterator[tuple[Layer, slice, bool]]:
        """Every layer with the place of the rows that this process holds, and whether it counts them."""
        for (layer, place), rows in zip(self.slices(), self._rows, strict=True):
            row = layer.tensor[0].numel()
            start = place.start + rows.start * row
            counts = rows.group is not None or is_first_of(self._sharers)
            yield layer, slice(start, start + rows.count * row), counts

    def _members(self) -> Tensor:
        """Room for a value per weight; zeros where other processes are to fill them in."""
        make = torch.empty if self._sharers is None else torch.zeros
        return make(self.member_count, device=self._device)

    def member_norms(self) -> Tensor:
        """Magnitude of every weight, shape ``(members,)``."""
        norms = self._members()
        for layer, place, counts in self._slices_at_hand():
            view = inputs_last(local(layer.tensor))
            if counts:
                norms[place].view(view.shape).copy_(view).abs_()
        return sum_over(norms, self._sharers)

    def member_products(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """Product of every weight at two points, given as tensors like :meth:`parameters`."""
        products = self._members()
        for (_layer, place, counts), one, other in zip(self._slices_at_hand(), left, right, strict=True):
            view = inputs_last(local(one))
            if counts:
                products[place].view(view.shape).copy_(view).mul_(inputs_last(local(other)))
        return sum_over(products, self._sharers)

    def scale_(self, factors: Tensor) -> None:
        """Multiplies every weight by its factor or flag, shape ``(members,)``, in place."""
        for layer, place, _counts in self._slices_at_hand():
            _scale_(local(layer.tensor), factors[place])

    def momenta_scale_(self, optimizer: torch.optim.Optimizer, factors: Tensor) -> None:
        """Multiplies the optimiser's state of every weight likewise, in place."""
        for layer, place, _counts in self._slices_at_hand():
            for value in optimizer.state.get(layer.tensor, {}).values():
                if isinstance(value, Tensor) and value.shape == layer.tensor.shape:
                    _scale_(local(value), factors[place])


def _scale_(tensor: Tensor, factors: Tensor) -> None:
    view = inputs_last(tensor)
    view.mul_(factors.view(view.shape))
