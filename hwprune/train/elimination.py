"""Which channels a trained network misses least once the layers behind them are fitted to do without them.

What reads a channel can make up for its loss from the channels that stay, as far as these carry the same
information. So channels are taken out one group after another, each time the one whose loss the readers make
up for best: their weights are the least-squares solution at every step, updated in closed form from the
inverse of the inputs' second moments. That gives an order of the channels of every axis, and for every number
of them the part of the readers' outputs that is lost. It takes one forward pass and no labels.

Source: the optimal brain surgeon (Hassibi and Stork 1993) in blocks, as in ZipLM (Kurtic, Frantar and
Alistarh, arXiv 2302.04089).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.graph.axes import ChannelAxis, TensorSlice
from hwprune.graph.record import ExampleInputs, call_observed
from hwprune.groups.order import Order
from hwprune.train.patches import drawn_positions, is_batched, is_solvable, only_input, patches, rows_of

#: How firmly the weights that stay are held, as a fraction of the mean square of what each is multiplied by.
RIDGE = 1e-3
#: With fewer samples than so many times the weights per output that are used, these are held more firmly, by
#: so much times how many of them there are for every sample: what is learned from few samples does not hold.
ENOUGH, SCARCE_RIDGE = 4, 0.1
#: Variances below this part of the mean square are rounding.
ROUNDING = 1e-6
#: Channels that may leave together are chosen among so many times as many, one after another.
CANDIDATES = 4
#: Equations are copied without the weights that are gone where fewer than this part of them stay.
DROPPED_BELOW = 0.8


@dataclass(slots=True, eq=False)
class _Reader:
    """A layer that reads an axis, while channels leave.

    Attributes:
        inverse: Of the second moments of what its weights are multiplied by, a constant 1 after them.
        weights: Those of every output, shape ``(outputs, weights + 1)``, the bias last.
        columns: Shape ``(channels, weights per channel)``: which of the weights read each channel.
        reads: Shape ``(channels,)``: whether it reads a channel at all.
        energy: Mean square of its outputs about their means.
        stays: Shape ``(weights + 1,)``: which weights are not gone.
    """

    inverse: Tensor
    weights: Tensor
    columns: Tensor
    reads: Tensor
    energy: float
    stays: Tensor

    def losses(self, channels: Tensor) -> Tensor:
        """What taking out each of some channels would add to the lost part, shape ``(channels,)``."""
        columns = self.columns[channels]
        if not bool(self.reads.any()):
            return torch.zeros(len(channels), dtype=torch.float64)
        if columns.shape[1] == 1:  # the blocks below are single numbers
            read = self.weights[:, columns[:, 0]].square().sum(0) / self.inverse.diagonal()[columns[:, 0]]
            return torch.where(self.reads[channels], read / self.energy, 0.0)
        blocks = self.inverse[columns[:, :, None], columns[:, None, :]]
        read = self.weights[:, columns].permute(1, 2, 0)
        lost = (read * torch.linalg.solve(blocks, read)).sum((1, 2)) / self.energy
        return torch.where(self.reads[channels], lost, 0.0)

    def take_out(self, channels: Tensor) -> float:
        """Takes channels out together and makes up for them; what that adds to the lost part."""
        gone = self.columns[channels[self.reads[channels]]].flatten()
        if not len(gone):
            return 0.0
        read = self.weights[:, gone]
        solved = torch.linalg.solve(
            self.inverse[gone][:, gone], torch.cat([self.inverse[gone], read.T], dim=1)
        )
        makes_up, alone = solved.split([len(self.inverse), len(read)], dim=1)
        lost = float((read.T * alone).sum()) / self.energy
        self.weights.addmm_(read, makes_up, alpha=-1)
        self.inverse.addmm_(self.inverse[:, gone], makes_up, alpha=-1)
        self.stays[gone] = False
        if self.stays.sum() < DROPPED_BELOW * len(self.stays):
            self._drop()
        return lost

    def among(self, channels: Tensor) -> _Reader:
        """The same layer as far as some channels are concerned, which are numbered anew."""
        reads = self.reads[channels]
        own = self.columns[channels[reads]]
        columns = torch.zeros(len(channels), own.shape[1], dtype=torch.long)
        columns[reads] = torch.arange(own.numel()).view_as(own)
        places = own.flatten()
        stays = torch.ones(len(places), dtype=torch.bool)
        inverse, weights = self.inverse[places][:, places], self.weights[:, places]
        return _Reader(inverse, weights, columns, reads, self.energy, stays)

    def _drop(self) -> None:
        """Drops what belongs to weights that are gone, so that the next steps have less to compute."""
        stays = self.stays
        self.inverse, self.weights = self.inverse[stays][:, stays], self.weights[:, stays]
        self.columns = (stays.cumsum(0) - 1).clamp_min(0)[self.columns]
        self.stays = stays[stays]


def _reader(layer: nn.Module, moments: Tensor, part: TensorSlice, width: int) -> _Reader | None:
    """A layer that has lost nothing yet; ``None`` where it cannot be judged.

    That is where its outputs are constant or not finite, or it reads unevenly.

    Args:
        layer: Plain.
        moments: Of its inputs, shape ``(weights + 1, weights + 1)``, and of how many samples in its corner.
        part: Which of its inputs read the axis.
        width: Of the axis.
    """
    rows = rows_of(layer).double().cpu()
    bias = layer.bias
    constant = bias.detach().double().cpu() if isinstance(bias, Tensor) else rows.new_zeros(len(rows))
    weights = torch.cat([rows, constant[:, None]], dim=1)
    samples = float(moments[-1, -1])
    moments = moments / samples
    means = moments[-1]
    whole = float(((weights @ moments) * weights).sum())
    energy = float(((weights @ (moments - torch.outer(means, means))) * weights).sum())
    owners = np.repeat(part.channels, rows.shape[1] // len(part.channels))
    of_axis = np.flatnonzero(owners >= 0)
    reads = np.bincount(owners[of_axis], minlength=width)
    # Moments are sums in single precision: what is left of them by chance is no energy.
    if not energy > ROUNDING * whole or len(set(reads[reads > 0].tolist())) != 1:
        return None
    columns = np.zeros((width, reads.max()), dtype=np.int64)
    columns[reads > 0] = of_axis[np.argsort(owners[of_axis], kind="stable")].reshape(-1, reads.max())
    diagonal = moments.diagonal()
    held = moments.clone()
    used = int((diagonal > 0).sum())
    ridge = RIDGE if samples >= ENOUGH * used else max(RIDGE, SCARCE_RIDGE * used / samples)
    held.diagonal().add_(ridge * (diagonal + 1e-6 * diagonal.mean()))
    factor, failed = torch.linalg.cholesky_ex(held)
    if bool(failed):
        return None
    inverse = torch.cholesky_inverse(factor)
    stays = torch.ones(len(held), dtype=torch.bool)
    return _Reader(inverse, weights, torch.from_numpy(columns), torch.from_numpy(reads > 0), energy, stays)


def eliminate(
    model: nn.Module,
    axes: Sequence[ChannelAxis],
    aligns: Sequence[int],
    alive: Sequence[Tensor],
    inputs: ExampleInputs,
) -> dict[str, Order]:
    """Orders the living channels of every axis by how much the layers that read them miss them.

    Args:
        model: The trained network; left as it is.
        axes: Its channel axes.
        aligns: Channels that leave together, per axis.
        alive: Per axis, shape ``(width,)``: which channels live.
        inputs: What the network is called with, some hundreds.

    Returns:
        Axis name to order. Axes that no convolution without groups and no linear layer reads are left out.
    """
    readers = {axis.name: _readers(model, axis) for axis in axes}
    if not any(readers.values()):
        return {}
    moments = _moments(model, {part.tensor for parts in readers.values() for part in parts}, inputs)
    layers = dict(model.named_modules())
    found = {}
    for axis, align, lives in zip(axes, aligns, alive, strict=True):
        parts = [part for part in readers[axis.name] if part.tensor in moments]
        reading = [
            reader
            for part in parts
            if (reader := _reader(layers[_layer(part)], moments[part.tensor], part, axis.width)) is not None
        ]
        if reading and bool(lives.any()):
            found[axis.name] = _order(reading, lives.cpu().nonzero().flatten(), align)
    return found


def _order(readers: Sequence[_Reader], living: Tensor, align: int) -> Order:
    """Takes groups of ``align`` out until one is left; the odd one, which is smaller, first."""
    order: list[int] = []
    steps = [0.0]
    while len(living) > align:
        least = _least(readers, living, len(living) % align or align)
        steps.append(sum(reader.take_out(living[least]) for reader in readers))
        order += living[least].tolist()
        stays = torch.ones(len(living), dtype=torch.bool)
        stays[least] = False
        living = living[stays]
    lost = np.cumsum(steps)[::-1]
    everything = max(float(len(readers)), float(lost[0]))  # what readers lose with the last channels
    return Order([*living.tolist(), *reversed(order)], np.concatenate([[everything], lost]))


def _losses(readers: Sequence[_Reader], channels: Tensor) -> Tensor:
    """What all readers would lose with each of some channels, shape ``(channels,)``."""
    return torch.stack([reader.losses(channels) for reader in readers]).sum(0)


def _least(readers: Sequence[_Reader], living: Tensor, count: int) -> Tensor:
    """Places of so many of the living channels that are missed least together, those first that leave first.

    One after another: of two that can stand in for each other only one is to leave.
    """
    candidates = _losses(readers, living).argsort(stable=True)[: CANDIDATES * count]
    if count == 1:
        return candidates[:1]
    apart = [reader.among(living[candidates]) for reader in readers]
    left, chosen = torch.arange(len(candidates)), []
    for _ in range(count):
        place = int(_losses(apart, left).argmin())
        chosen.append(int(left[place]))
        for reader in apart:
            reader.take_out(left[place : place + 1])
        left = torch.cat([left[:place], left[place + 1 :]])
    return candidates[chosen]


def _readers(model: nn.Module, axis: ChannelAxis) -> list[TensorSlice]:
    """The weights of plain layers that read an axis by their inputs."""
    layers = dict(model.named_modules())
    return [
        part
        for part in axis.consumers
        if part.dim == 1 and part.tensor.endswith(".weight") and is_solvable(layers[_layer(part)])
    ]


def _layer(part: TensorSlice) -> str:
    return part.tensor.rpartition(".")[0]


def _moments(model: nn.Module, weights: set[str], inputs: ExampleInputs) -> Mapping[str, Tensor]:
    """Sums of products of what weights are multiplied by, and of a constant 1, by the name of the weights."""
    sums: dict[str, Tensor] = {}

    def observe(name: str, layer: nn.Module, arriving: Tensor, output: Tensor) -> None:
        if not output.numel() or not is_batched(layer, output):
            return
        with torch.autocast(arriving.device.type, enabled=False):
            for part in patches(layer, arriving, drawn_positions(layer, output)):
                known = torch.cat([part, part.new_ones(len(part), 1)], dim=1)
                # Summed up in double precision, part by part; products in it would take twice as long.
                product = (known.T @ known).cpu().double()
                sums[name] = sums[name] + product if name in sums else product

    layers = dict(model.named_modules())
    handles = [
        layers[name.rpartition(".")[0]].register_forward_hook(
            lambda layer, arguments, named, output, name=name: observe(
                name, layer, only_input(arguments, named), output
            ),
            with_kwargs=True,
        )
        for name in sorted(weights)
    ]
    call_observed(model, inputs, handles)
    return sums
