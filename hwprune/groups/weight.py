"""Single weights: every weight of every linear layer and convolution is a group of its own.

Nothing becomes narrower: a dead weight is a zero in a dense matrix, for whoever stores or multiplies sparse
matrices. Besides the weights a proximal step with the envelope, the settling included, holds less than two
numbers per weight. Between steps a flag is left, and what the penalty remembers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hwprune.groups.base import Grouping, Terms
from hwprune.groups.flat import TYPICAL_SHARE, FlatWeights, LayerGroups, find_layers

#: Layers below this norm count as having it; a layer of zeros keeps shares of zero.
SMALLEST_NORM = 1e-30
#: Weights of a layer are sorted in so many bands, told apart by a sample of this many.
_BANDS, _SAMPLE = 32, 4096
#: Values of which ties are looked for at a time.
_PART = 1 << 18


class WeightGroups(FlatWeights):
    """The weights of a network as a :class:`~hwprune.groups.base.GroupSet`.

    Args:
        model: The network; its parameters are read and scaled in place.
        keep: Dotted names of modules that stay dense.

    Raises:
        GraphError: If there is no weight matrix.
        InputError: If ``keep`` names something else.

    Attributes:
        left_dense: Layers and parameters without groups: dotted name, number of weights, and why.
    """

    def __init__(self, model: nn.Module, keep: Sequence[str] = ()) -> None:
        layers, self.left_dense = find_layers(model, keep)
        super().__init__(layers)

    def allowance(self, count_of: Callable[[int], int]) -> WeightAllowance:
        """So many weights, anywhere in the network."""
        return WeightAllowance(self, count_of(self.member_count), gradual=True)

    def bundle(self, norms: Tensor, alive: Tensor) -> Singles:
        """Every weight by itself."""
        return self.regroup(())

    def regroup(self, state: Sequence[Tensor]) -> Singles:
        """Every weight by itself."""
        return Singles(self)


class Singles:
    """Every weight (or other member of a layer) by itself, as a :class:`~hwprune.groups.base.Grouping`."""

    def __init__(self, groups: LayerGroups) -> None:
        self._groups = groups

    @property
    def count(self) -> int:
        """Number of weights; dead ones have norm 0."""
        return self._groups.member_count

    def shares(self, member_norms: Tensor) -> Tensor:
        """Magnitude of every weight as a share of the norm of its layer's living weights, in place.

        All of them are multiplied by one number, which makes their root mean square
        :data:`~hwprune.groups.flat.TYPICAL_SHARE` in a dense network.

        Args:
            member_norms: Shape ``(members,)``; zero for dead members.
        """
        groups = self._groups
        scale = TYPICAL_SHARE * math.sqrt(groups.member_count / len(groups.layers))
        for _layer, place in groups.slices():
            part = member_norms[place]
            whole = torch.linalg.vector_norm(part).clamp_min(SMALLEST_NORM)
            part.mul_(scale / whole)
        return member_norms

    def sums(self, member_values: Tensor) -> Tensor:
        """The values themselves."""
        return member_values

    def means(self, member_values: Tensor) -> Tensor:
        """The values."""
        return member_values.clone()

    def to_members(self, group_values: Tensor, *, other: float) -> Tensor:
        """The values themselves."""
        return group_values

    def state(self) -> list[Tensor]:
        """Nothing."""
        return []


class WeightAllowance:
    """So many weights (or other members of layers), as an :class:`~hwprune.groups.base.Allowance`.

    Args:
        groups: The weights.
        limit: How many stay.
        gradual: Whether the penalty is told to come down to the limit from all of them. Where nearly all
            leave, those that stay can only be told once the others have made room.
    """

    def __init__(self, groups: LayerGroups, limit: int, *, gradual: bool = False) -> None:
        self.limit: float = limit
        self.record: Sequence[Mapping[str, Any]] = ()
        self._groups, self._gradual = groups, gradual

    def terms(self, grouping: Grouping, alive: Tensor) -> Terms:
        """The limit, at unit cost."""
        return Terms(self.limit, None, float(self._groups.member_count) if self._gradual else None)

    def survivors(self, norms: Tensor, alive: Tensor) -> Tensor:
        """The living weights of the largest layer-adaptive scores, exactly as many as may stay.

        Where much is cut at once, plain shares would empty a large layer of similar weights; with these
        scores its last weights are worth the more, the fewer they are.
        """
        if int(torch.count_nonzero(alive)) <= self.limit:
            return alive.clone()
        for _layer, place in self._groups.slices():
            layer_adaptive_scores_(norms[place])
        # Living weights that happen to be zero come before dead ones.
        norms.masked_fill_(~alive, -1.0)
        return largest(norms, int(self.limit)).logical_and_(alive)


def layer_adaptive_scores_(norms: Tensor) -> Tensor:
    """The energy of every weight as a share of that of all of its layer not smaller than it, in place.

    Only a band of the order is sorted at a time: a whole layer with its order would need several times the
    memory of the norms.

    Source: Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021, arXiv 2010.07611.

    Args:
        norms: Magnitudes of the weights of one layer, shape ``(n,)``; overwritten.

    Returns:
        The norms' memory, shape ``(n,)``, in [0, 1]; 1 for the largest. Of equal weights the first counts as
        larger.

    >>> layer_adaptive_scores_(torch.tensor([1.0, 2.0, 0.0]))
    tensor([0.2000, 1.0000, 0.0000])
    """
    above = 0.0
    for least in _band_ends(norms):
        above += _score_band_(norms, least, above)
    return norms.abs_()


def _score_band_(norms: Tensor, least: float, above: float) -> float:
    """Scores the weights of at least that norm, which get their score with a minus and are in no later band.

    Args:
        norms: Shape ``(n,)``; scored weights are negative.
        least: Not negative.
        above: The energy of the weights scored before.

    Returns:
        The energy of those scored now.
    """
    strong = norms >= least
    # The dead, of which there are many, score 0 as they are.
    places = torch.nonzero(strong.logical_and_(norms > 0) if least == 0 else strong).flatten()
    ordered, order = norms[places].sort(descending=True, stable=True)
    energy = ordered.double().square_()
    band = float(energy.sum())
    whole = energy.cumsum(0).add_(above).clamp_min_(SMALLEST_NORM**2)
    norms[places[order]] = energy.div_(whole).neg_().to(norms.dtype)
    return band


def _band_ends(norms: Tensor) -> list[float]:
    """The least norms of bands of about equally many weights, the strongest band first; the last is 0."""
    if norms.numel() <= _SAMPLE:
        return [0.0]
    sample = norms[:: norms.numel() // _SAMPLE].sort(descending=True).values
    part = sample.numel() // _BANDS
    return sorted({*sample[part::part].tolist(), 0.0}, reverse=True)


def largest(values: Tensor, count: int) -> Tensor:
    """The ``count`` largest of a vector, by bisection of the threshold.

    Selection and sorting keep an index per value, four times the memory of the values themselves; this keeps
    a flag.

    Args:
        values: Shape ``(n,)``, float32, and of those below 0 none is wanted.
        count: How many; all where there are no more.

    Returns:
        Boolean, shape ``(n,)``; of equal values the first ones.

    >>> largest(torch.tensor([0.5, 2.0, 0.5, 1.0]), 3)
    tensor([ True,  True, False,  True])
    """
    if count >= values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    # Floating-point numbers that are not negative are in the order of their bits read as integers.
    bits = values.view(torch.int32)
    low, high = int(bits.min()), int(bits.max()) + 1  # at least count values reach low, fewer reach high
    while high - low > 1:
        middle = (low + high) // 2
        if int(torch.count_nonzero(bits >= middle)) >= count:
            low = middle
        else:
            high = middle
    kept = bits >= high
    room = count - int(torch.count_nonzero(kept))
    # Part by part: where most values are alike, their places would take more memory than the values.
    for part, chosen in zip(torch.split(bits, _PART), torch.split(kept, _PART), strict=True):
        if room:
            ties = torch.nonzero(part == low).flatten()[:room]
            chosen[ties] = True
            room -= ties.numel()
    return kept
