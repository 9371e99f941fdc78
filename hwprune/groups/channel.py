"""Channels, bundled so that a layer's width stays a multiple of what the hardware likes.

A member is one channel of one axis: its filters, their biases and the scales and shifts of the norms
behind them, in every layer that the axis ties together. Zeroing a member makes the channel vanish.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hwprune.errors import GraphError
from hwprune.graph.axes import BoolArray, ChannelAxis
from hwprune.groups.base import Bundles
from hwprune.groups.costs import Together, emptied
from hwprune.groups.shards import Rows, common_group, is_first_of, local, rows_of, sum_over


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """What this process holds of one producing tensor of an axis, ready for use in a training step."""

    tensor: Tensor
    dim: int
    rows: Rows

    @property
    def positions(self) -> int:
        """Positions at hand along the dimension that the axis runs along."""
        return self.rows.count if self.dim == 0 else self.tensor.shape[self.dim]

    def at_hand(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """What belongs to the positions at hand, of values for all positions."""
        return positions[self.rows.start : self.rows.start + self.rows.count] if self.dim == 0 else positions

    def norms(self) -> Tensor:
        """Euclidean norm of what lies at every position, shape ``(positions,)``."""
        weights = local(self.tensor)
        others = [dim for dim in range(weights.ndim) if dim != self.dim]
        return torch.linalg.vector_norm(weights, dim=others) if others else weights.abs()

    def sums(self, values: Tensor) -> Tensor:
        """Sum at every position, shape ``(positions,)``, of values shaped like what is at hand."""
        others = [dim for dim in range(values.ndim) if dim != self.dim]
        return values.sum(dim=others) if others else values

    def along(self, values: Tensor) -> Tensor:
        """Values per position, shape ``(positions,)``, as they broadcast against the tensor."""
        shape = [1] * self.tensor.ndim
        shape[self.dim] = -1
        return values.view(shape)


@dataclass(frozen=True, slots=True)
class Tail:
    """What leaves a network with the last channel of some axes: the rest of a branch that they lie in.

    Attributes:
        axes: Names of axes; all of them are empty when one of them is.
        parameters: Dotted names of all weights of the branch.
    """

    axes: tuple[str, ...]
    parameters: tuple[str, ...]


class ChannelGroups:
    """The prunable channels of a network, as a :class:`~hwprune.groups.base.GroupSet`.

    Args:
        model: The network; its parameters are read and scaled in place.
        axes: Its channel axes; pinned ones are left out.
        aligns: Axis name to the number of channels that leave together.
        tails: What may leave as a whole, so that the last channels of its axes are groups like all others; no
            two of them share a weight.

    Raises:
        GraphError: If no axis may shrink.

    Attributes:
        axes: The axes that may shrink.
        aligns: Channels that leave together, per axis.
        fewest: Groups that every axis keeps, shape ``(axes,)``: 1, or 0 for the axes of tails.
        together: Indices of the axes of every tail.
        tails: What may leave as a whole.
    """

    def __init__(
        self,
        model: nn.Module,
        axes: Sequence[ChannelAxis],
        aligns: Mapping[str, int],
        tails: Sequence[Tail] = (),
    ) -> None:
        may_be_empty = {name for tail in tails for name in tail.axes}
        self.axes = tuple(
            axis
            for axis in axes
            if axis.pinned is None and (axis.width > aligns[axis.name] or axis.name in may_be_empty)
        )
        if not self.axes:
            raise GraphError(
                "nothing can be pruned: no channel axis may shrink",
                expected="at least one axis wider than its alignment",
                got="; ".join(unprunable_reasons(axes, aligns)) or "no channel axis at all",
            )
        self.aligns: tuple[int, ...] = tuple(aligns[axis.name] for axis in self.axes)
        self.widths = np.array([axis.width for axis in self.axes], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.widths)])
        self.tails = tuple(tails)
        self.fewest = np.array([axis.name not in may_be_empty for axis in self.axes], dtype=np.int64)
        places = {axis.name: index for index, axis in enumerate(self.axes)}
        self.together: Together = [tuple(places[name] for name in tail.axes) for tail in self.tails]
        self.rebind(model)

    def rebind(self, model: nn.Module) -> None:
        """Takes the tensors of the network anew, after others were put in their place or it was moved.

        Raises:
            InputError: If they are spread over processes otherwise than ``fully_shard`` does.
        """
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        slices = [
            (part, int(start))
            for axis, start in zip(self.axes, self.starts[:-1], strict=True)
            for part in axis.producers
        ]
        self._parts = [
            _Part(tensors[part.tensor], part.dim, rows_of(tensors[part.tensor], part.tensor))
            for part, _ in slices
        ]
        self._device = self._parts[0].tensor.device
        self._sharers = common_group(part.rows for part in self._parts)
        # The positions of all parts in a row; those that no axis owns belong to one more member.
        owners = [
            part.at_hand(np.where(item.channels < 0, self.member_count, item.channels + start))
            for part, (item, start) in zip(self._parts, slices, strict=True)
        ]
        # Half the memory of the usual index type, in the largest thing that is kept between steps.
        members = np.concatenate(owners).astype(np.int32)
        self._member_of_position = torch.from_numpy(members).to(self._device)
        self._counts = self._counted_once() if self._sharers is not None else None
        self._tail_tensors = [[tensors[name] for name in tail.parameters] for tail in self.tails]
        self._weigh_axes(tensors)

    def _weigh_axes(self, tensors: Mapping[str, Tensor]) -> None:
        # A channel that several layers produce (a residual stream) holds a share of each of them.
        producers = [sum(tensors[part.tensor].ndim >= 2 for part in axis.producers) for axis in self.axes]
        self._axis_weight = torch.tensor(producers, device=self._device).clamp_min(1).sqrt()
        self._member_axis = torch.repeat_interleave(
            torch.arange(len(self.axes)), torch.from_numpy(self.widths)
        ).to(self._device)

    def _counted_once(self) -> Tensor:
        """Factors per position, shape ``(positions,)``: what every process holds whole counts in one."""
        first = is_first_of(self._sharers)
        counts = [float(first or part.rows.group is not None) for part in self._parts]
        positions = torch.tensor([part.positions for part in self._parts])
        return torch.tensor(counts).repeat_interleave(positions).to(self._device)

    @property
    def member_count(self) -> int:
        """Number of channels over all axes."""
        return int(self.starts[-1])

    @property
    def group_count(self) -> int:
        """Number of bundles in the dense network, those that must stay included."""
        return sum(math.ceil(axis.width / align) for axis, align in zip(self.axes, self.aligns, strict=True))

    def member_norms(self) -> Tensor:
        """Norm of every channel over all of its producers, shape ``(members,)``."""
        norms = torch.cat([part.norms() for part in self._parts]).float()
        return self._per_member(norms.square()).sqrt()

    def member_products(self, left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
        """Inner product of every channel over all of its producers at two points, shape ``(members,)``."""
        triples = zip(self._parts, left, right, strict=True)
        products = torch.cat([part.sums(local(one) * local(other)) for part, one, other in triples])
        return self._per_member(products.float())

    def scale_(self, factors: Tensor) -> None:
        """Multiplies every channel's producers by its factor or flag, shape ``(members,)``, in place."""
        tensors = [local(part.tensor) for part in self._parts]
        torch._foreach_mul_(tensors, self._along_parts(factors))
        for tail, stays in zip(self._tail_tensors, self._tails_stay(factors), strict=True):
            torch._foreach_mul_([local(tensor) for tensor in tail], stays)

    def momenta_scale_(self, optimizer: torch.optim.Optimizer, factors: Tensor) -> None:
        """Multiplies the optimiser's state of every channel's producers likewise, in place."""
        for part, along in zip(self._parts, self._along_parts(factors), strict=True):
            for value in optimizer.state.get(part.tensor, {}).values():
                if isinstance(value, Tensor) and value.shape == part.tensor.shape:
                    local(value).mul_(along)
        for tail, stays in zip(self._tail_tensors, self._tails_stay(factors), strict=True):
            for tensor in tail:
                for value in optimizer.state.get(tensor, {}).values():
                    if isinstance(value, Tensor) and value.shape == tensor.shape:
                        local(value).mul_(stays)

    def _tails_stay(self, factors: Tensor) -> list[Tensor]:
        """Per tail, 1 where every axis of it has a channel with a factor that is not zero, else 0."""
        if not self.tails:
            return []
        living = torch.zeros(len(self.axes), device=self._device)
        living.index_add_(0, self._member_axis, (factors != 0).to(living))
        return [(living[list(axes)] > 0).all().to(living) for axes in self.together]

    def _per_member(self, values: Tensor) -> Tensor:
        """Sums values per position of all parts into the members that own them, shape ``(members,)``."""
        sums = values.new_zeros(self.member_count + 1)
        if self._counts is not None:
            values = values * self._counts
        return sum_over(sums.index_add_(0, self._member_of_position, values), self._sharers)[:-1]

    def _along_parts(self, factors: Tensor) -> list[Tensor]:
        """Factors per member, shape ``(members,)``, as they broadcast against every part's tensor."""
        factors = factors.to(torch.float32)
        spread = torch.cat([factors, factors.new_ones(1)]).index_select(0, self._member_of_position)
        pieces = torch.split(spread, [part.positions for part in self._parts])
        return [part.along(piece) for part, piece in zip(self._parts, pieces, strict=True)]

    def parameters(self) -> list[Tensor]:
        """The tensors that are scaled: all producers of the axes that may shrink."""
        return [part.tensor for part in self._parts]

    def ranked_shares(self, norms: Tensor, alive: Tensor) -> list[npt.NDArray[np.float64]]:
        """Per axis, each living bundle's weighted share of the axis norm, from strongest to weakest.

        Args:
            norms: Shape ``(members,)``; zero for dead members.
            alive: Shape ``(members,)``, boolean.
        """
        shares = []
        weights = self._axis_weight.tolist()
        for start, stop, align, weight in zip(
            self.starts[:-1], self.starts[1:], self.aligns, weights, strict=True
        ):
            living = norms[start:stop][alive[start:stop]].double().cpu().numpy()
            squares = np.sort(living)[::-1] ** 2
            bundles = np.add.reduceat(squares, np.arange(0, squares.size, align))
            shares.append(weight * np.sqrt(bundles / max(bundles.sum(), np.finfo(np.float64).tiny)))
        return shares

    def strongest(self, norms: Tensor, alive: Tensor, widths: npt.NDArray[np.int64]) -> Tensor:
        """The ``widths`` strongest living members of every axis, as a mask of shape ``(members,)``."""
        kept = torch.zeros_like(alive)
        left = emptied(widths, self.together)
        for start, stop, width in zip(self.starts[:-1], self.starts[1:], left, strict=True):
            strength = torch.where(alive[start:stop], norms[start:stop], -torch.inf)
            order = torch.argsort(strength, descending=True, stable=True)
            kept[start + order[: int(width)]] = True
        return kept & alive

    def bundle(self, norms: Tensor, alive: Tensor) -> Bundles:
        """Bundles every ``align`` living channels of an axis in the order of their norms.

        The strongest bundle of an axis always stays, unless a tail leaves with it; where the width is no
        multiple of the alignment the weakest bundle is the smaller one, so that what is left is aligned.

        Args:
            norms: Shape ``(members,)``.
            alive: Shape ``(members,)``, boolean.
        """
        of_member = torch.full((self.member_count,), -1, dtype=torch.long, device=norms.device)
        axis_of: list[int] = []
        for index, align in enumerate(self.aligns):
            start, stop = int(self.starts[index]), int(self.starts[index + 1])
            strength = torch.where(alive[start:stop], norms[start:stop], -torch.inf)
            order = torch.argsort(strength, descending=True, stable=True)
            living = order[: int(alive[start:stop].sum())]
            rank_bundle = torch.arange(living.numel(), device=norms.device) // align
            fewest = int(self.fewest[index])
            candidate = rank_bundle >= fewest
            of_member[start + living[candidate]] = len(axis_of) + rank_bundle[candidate] - fewest
            axis_of += [index] * max(math.ceil(living.numel() / align) - fewest, 0)
        return Bundles(
            of_member,
            torch.tensor(axis_of, dtype=torch.long, device=norms.device),
            self._member_axis,
            self._axis_weight,
        )

    def regroup(self, state: Sequence[Tensor]) -> Bundles:
        """The bundles whose state that was."""
        of_member, axis_of = state
        return Bundles(
            of_member.to(self._device), axis_of.to(self._device), self._member_axis, self._axis_weight
        )

    def groups_alive(self, alive: Tensor) -> int:
        """Number of living bundles, those that must stay included."""
        return int((-(-self.widths_of(alive) // np.array(self.aligns))).sum())

    def members_alive(self, alive: Tensor) -> dict[str, int]:
        """Living channels of every axis, by its name."""
        widths = self.widths_of(alive).tolist()
        return {axis.name: width for axis, width in zip(self.axes, widths, strict=True)}

    def widths_of(self, alive: Tensor) -> npt.NDArray[np.int64]:
        """Living channels of every axis, shape ``(axes,)``."""
        counts = torch.bincount(self._member_axis[alive], minlength=len(self.axes))
        return np.asarray(counts.cpu().numpy(), dtype=np.int64)

    def kept(self, alive: Tensor) -> dict[str, BoolArray]:
        """Axis name to the mask of its living channels, as surgery takes it."""
        flags = alive.cpu().numpy()
        return {
            axis.name: flags[start:stop].copy()
            for axis, start, stop in zip(self.axes, self.starts[:-1], self.starts[1:], strict=True)
        }


def unprunable_reasons(axes: Sequence[ChannelAxis], aligns: Mapping[str, int]) -> list[str]:
    """One line for every axis that cannot shrink, with the reason."""
    return [
        f"{axis.name}: " + (axis.pinned or f"{axis.width} channels are one group of {aligns[axis.name]}")
        for axis in axes
        if axis.pinned is not None or axis.width <= aligns[axis.name]
    ]
