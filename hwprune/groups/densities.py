"""Budgets in microseconds for single weights: how many every layer keeps, where kernels skip zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwprune.errors import TargetError
from hwprune.groups.base import Grouping, Terms
from hwprune.groups.costs import COST_FLOOR, FloatArray, LatencyBudget, Widths
from hwprune.groups.weight import WeightGroups, largest, layer_adaptive_scores_

#: Parts of a layer's living weights that are looked ahead at, for what leaving costs less.
LOOK_AHEAD = (0.9, 0.75, 0.5, 0.25, 0.1)
#: Numbers of weights that are considered for every layer, from what lives to what saves nothing more.
LEVELS = 48
#: Parts into which the microseconds that may be spent are divided.
BINS = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Ladder:
    """What a layer may keep.

    Attributes:
        counts: Numbers of weights, descending.
        losses: The importance lost with each of them, ascending from 0.
    """

    counts: Widths
    losses: FloatArray


#: From the allowance and what every layer may keep to what it keeps.
ChooseCounts = Callable[["DensityAllowance", Sequence[Ladder]], Widths]


class DensityAllowance:
    """A latency budget on weights as an :class:`~hwprune.groups.base.Allowance`.

    Args:
        groups: The weights.
        budget: Prices the numbers of weights that the layers keep.
        least: Shape ``(layers,)``: fewer weights save nothing more.
        choose: Called when the support settles; may replace :attr:`budget`. Defaults to :func:`fit_counts` on
            the budget.

    Attributes:
        budget: See above.
    """

    def __init__(
        self,
        groups: WeightGroups,
        budget: LatencyBudget,
        least: Widths,
        choose: ChooseCounts | None = None,
    ) -> None:
        self.budget = budget
        self.record: Sequence[Mapping[str, Any]] = ()
        self._groups, self._least = groups, least
        self._choose = choose or DensityAllowance.fitted

    @property
    def limit(self) -> float:
        """The budget's limit, in microseconds."""
        return self.budget.limit

    @limit.setter
    def limit(self, limit: float) -> None:
        self.budget = self.budget.with_limit(limit)

    def terms(self, grouping: Grouping, alive: Tensor) -> Terms:
        """The budget linearised at the living weights; the mean cost is 1."""
        counts = self.counts(alive)
        per_weight = price_weights(self.budget, counts)
        excess = float(self.budget.used(counts)) - self.budget.limit
        whole = float(per_weight @ counts)
        unit = whole / max(int(counts.sum()), 1)
        cost = torch.empty(self._groups.member_count, device=alive.device)
        for price, (_layer, place) in zip(per_weight, self._groups.slices(), strict=True):
            cost[place] = price / unit
        return Terms(max(whole - excess, 0.0) / unit, cost)

    def survivors(self, norms: Tensor, alive: Tensor) -> Tensor:
        """The living weights of the largest layer-adaptive scores, as many of every layer as were chosen."""
        ladders = []
        for (_layer, place), living, least in zip(
            self._groups.slices(), self.counts(alive), self._least, strict=True
        ):
            layer_adaptive_scores_(norms[place])
            ladders.append(ladder(norms[place], int(living), int(least)))
        norms.masked_fill_(~alive, -1.0)
        kept = torch.zeros_like(alive)
        for count, (_layer, place) in zip(self._choose(self, ladders), self._groups.slices(), strict=True):
            kept[place] = largest(norms[place], int(count))
        return kept.logical_and_(alive)

    def fitted(self, ladders: Sequence[Ladder]) -> Widths:
        """Numbers of weights that fit the budget at the least loss."""
        return fit_counts(self.budget, ladders)

    def counts(self, alive: Tensor) -> Widths:
        """Living weights of every layer, shape ``(layers,)``."""
        slices = self._groups.slices()
        return np.array([int(torch.count_nonzero(alive[place])) for _layer, place in slices], dtype=np.int64)


def price_weights(budget: LatencyBudget, counts: Widths) -> FloatArray:
    """What a weight of every layer costs: the best mean saving over the next weights that leave it.

    Args:
        budget: The budget.
        counts: Shape ``(layers,)``: living weights.

    Returns:
        Microseconds, shape ``(layers,)``, positive.
    """
    used = float(budget.used(counts))
    savings = []
    for part in LOOK_AHEAD:
        fewer = np.tile(counts, (counts.size, 1))
        np.fill_diagonal(fewer, np.floor(part * counts).astype(np.int64))
        gone = np.maximum(counts - fewer.diagonal(), 1)
        savings.append((used - budget.used(fewer)) / gone)
    best = np.max(savings, axis=0)
    floor = COST_FLOOR * max(float(np.abs(best).mean()), np.finfo(np.float64).tiny)
    return np.asarray(np.maximum(best, floor))


def ladder(scores: Tensor, living: int, least: int) -> Ladder:
    """Numbers of weights between those that live and the least, and what is lost with each.

    Args:
        scores: Importance of the weights of one layer, shape ``(n,)``; zero for dead ones.
        living: How many live.
        least: Fewer save nothing more.

    >>> ladder(torch.tensor([0.1, 0.4, 0.2, 0.3]), living=4, least=2).losses.round(1).tolist()
    [0.0, 0.1, 0.3]
    """
    spaced = np.geomspace(max(min(least, living), 1), max(living, 1), LEVELS)
    counts = np.unique(spaced.round().astype(np.int64))[::-1]
    ascending = torch.sort(scores).values.double().cumsum(0)
    lost = torch.from_numpy(scores.numel() - counts.copy()).to(scores.device)
    losses = torch.where(lost > 0, ascending[(lost - 1).clamp_min(0)], 0.0)
    return Ladder(counts, (losses - losses[0]).cpu().numpy())


def fit_counts(budget: LatencyBudget, ladders: Sequence[Ladder]) -> Widths:
    """How many weights every layer keeps: the least loss within the budget.

    A knapsack with one step of its ladder for every layer, solved by dynamic programming over the
    microseconds spent, in :data:`BINS` parts that are rounded up. What rounding leaves is given back, to the
    layers that lost most first.

    Args:
        budget: The latency of a network is the sum over its layers.
        ladders: Per layer.

    Returns:
        Shape ``(layers,)``.

    Raises:
        TargetError: If the fastest steps of all ladders exceed the budget.
    """
    whole = np.array([steps.counts[0] for steps in ladders], dtype=np.int64)
    base = float(budget.used(whole))
    latencies = [_alone(budget, whole, layer, steps.counts) - base for layer, steps in enumerate(ladders)]
    least = base + sum(float(latency.min()) for latency in latencies)
    # A limit may be the least itself, but for the rounding of its sum.
    if least > budget.limit * (1 + 1e-9):
        raise TargetError(
            "the target cannot be met by zeros in this network on this device",
            expected=f"at least {least:.4g} us (predicted at the densities that were measured, "
            f"{base / least:.2f} times faster than with the weights that live)",
            got=f"{budget.limit:.4g} us",
            hint="ask for less, or prune channels",
        )
    spent = [latency - latency.min() for latency in latencies]
    places = _knapsack(budget.limit - least, spent, [steps.losses for steps in ladders])
    room = budget.limit - least - sum(float(spend[at]) for spend, at in zip(spent, places, strict=True))
    for layer in sorted(range(len(ladders)), key=lambda layer: -ladders[layer].losses[places[layer]]):
        spend, at = spent[layer], places[layer]
        places[layer] = next((higher for higher in range(at) if spend[higher] - spend[at] <= room), at)
        room -= float(spend[places[layer]] - spend[at])
    return np.array([steps.counts[at] for steps, at in zip(ladders, places, strict=True)], dtype=np.int64)


def _knapsack(room: float, spent: Sequence[FloatArray], losses: Sequence[FloatArray]) -> list[int]:
    """One step per layer, of the least loss in all, that together spend no more than there is room for."""
    unit = max(room, np.finfo(np.float64).tiny) / BINS
    best = np.zeros(BINS + 1)  # least loss of the layers so far, by the bins that may be spent
    choices = []
    for spend, loss in zip(spent, losses, strict=True):
        bins = np.minimum(np.ceil(spend / unit), BINS + 1).astype(np.int64)
        options = np.full((loss.size, BINS + 1), np.inf)
        for step in range(loss.size):
            options[step, bins[step] :] = best[: BINS + 1 - bins[step]] + loss[step]
        choices.append((bins, options.argmin(axis=0)))
        best = options.min(axis=0)
    places, left = [], BINS
    for bins, choice in reversed(choices):
        places.append(int(choice[left]))
        left -= int(bins[places[-1]])
    return places[::-1]


def _alone(budget: LatencyBudget, whole: Widths, layer: int, counts: Widths) -> FloatArray:
    """Latency with one layer at each of its numbers of weights and the others whole."""
    networks = np.tile(whole, (counts.size, 1))
    networks[:, layer] = counts
    return budget.used(networks)
