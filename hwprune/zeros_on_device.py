"""A latency target for single weights, on a device whose kernels skip zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from hwprune.closed_loop import Turn, settle_on_device
from hwprune.device.correction import Correction
from hwprune.device.densities import DensityPredictor
from hwprune.device.profile import DeviceProfile
from hwprune.graph.axes import BoolArray
from hwprune.graph.record import ExampleInputs
from hwprune.graph.twin import copy_of
from hwprune.groups.costs import LatencyBudget, Widths, limit_within_reach
from hwprune.groups.densities import DensityAllowance, Ladder, fit_counts
from hwprune.groups.flat import Layer
from hwprune.groups.weight import WeightGroups
from hwprune.network_calibration import calibrate
from hwprune.operators import Operator
from hwprune.processes import from_first
from hwprune.runtime.bench import THIS_MACHINE, Bench, Exports
from hwprune.runtime.patience import Patience
from hwprune.runtime.timing import Timing

#: The part of the weights that is left in the second network that the prediction is fitted to.
SPARSE_SAMPLE = 0.1
#: What stands for a dead weight in a network that is timed with it: latency depends on no value but zero.
REVIVED = 1e-2


@dataclass(frozen=True, slots=True, eq=False)
class ZerosLoop:
    """Sets weights of a network to zero and times it on the device.

    Attributes:
        model: The network, whose weights may be zero already; not touched.
        example_inputs: What it is exported with.
        layers: The layers that numbers of weights refer to, in order.
        profile: The device.
        patience: For timing again what was disturbed.
        bench: What is measured on.
        exports: Exports what is built.
    """

    model: nn.Module
    example_inputs: ExampleInputs
    layers: Sequence[Layer]
    profile: DeviceProfile
    patience: Patience
    bench: Bench = THIS_MACHINE
    exports: Exports = field(default_factory=Exports)

    def measure(self, networks: Mapping[str, Mapping[str, BoolArray]]) -> dict[str, Timing]:
        """Times networks alternately in one run, again where something disturbs it.

        Args:
            networks: Name to the weights that are kept of each layer; ``dense`` is one of them.

        Returns:
            Name to timing.
        """
        built = {name: self._with_zeros(kept) for name, kept in networks.items()}
        with self.exports.files(built, self.example_inputs, self.profile) as paths:
            return self.patience.least_disturbed(lambda: self.bench.time(paths, self.profile))

    def kept(self, widths: Widths) -> dict[str, BoolArray]:
        """As many weights of every layer, drawn at random: latency depends little on which ones stay."""
        generator = np.random.default_rng(0)
        kept = {}
        for layer, count in zip(self.layers, widths, strict=True):
            chosen = np.zeros(layer.tensor.numel(), dtype=bool)
            chosen[: int(count)] = True
            kept[layer.parameter] = generator.permutation(chosen)
        return kept

    def _with_zeros(self, kept: Mapping[str, BoolArray]) -> nn.Module:
        """A copy with exactly these weights: those that died in training live again."""
        model = copy_of(self.model)
        with torch.no_grad():
            for layer in self.layers:
                weights = model.get_parameter(layer.parameter)
                weights.masked_fill_(weights == 0, REVIVED)
                if layer.parameter in kept:
                    mask = torch.from_numpy(kept[layer.parameter]).view(weights.shape)
                    weights.mul_(mask.to(weights))
        return model


class ZerosOnDevice:
    """Prices zeros by the profile and settles on numbers of weights in a closed loop with the device.

    Args:
        groups: The weights.
        operators: Fused operators of the dense network.
        loop: Measures.
        allowed_us: From the dense latency to the one allowed, predicted and measured alike.
        measure: Whether to measure on this machine.

    Attributes:
        allowance: What may stay.

    Raises:
        TargetError: If the target is out of reach.
        MissingRowError: If the table lacks an operator, or has it at one density only.
    """

    def __init__(
        self,
        groups: WeightGroups,
        operators: Sequence[Operator],
        loop: ZerosLoop,
        allowed_us: Callable[[float], float],
        *,
        measure: bool,
    ) -> None:
        self._loop, self._allowed_us, self._measures = loop, allowed_us, measure
        sizes: Widths = np.array([layer.tensor.numel() for layer in groups.layers], dtype=np.int64)
        places = {layer.name: place for place, layer in enumerate(groups.layers)}
        priced = [places.get(operator.name, -1) if operator.weighted else -1 for operator in operators]
        self._sizes = sizes
        self._predictor = DensityPredictor(operators, priced, sizes, loop.profile)
        if measure:
            sparse = np.ceil(SPARSE_SAMPLE * sizes).astype(np.int64)
            fitted = from_first(lambda: calibrate(loop, self._predictor, [sizes, sparse]))
            self._predictor = self._predictor.corrected(fitted)
        dense_us = self.dense_us
        least = self._predictor.least_counts()
        least_us = float(self._predictor.latency_us(least))
        limit = limit_within_reach(
            allowed_us(dense_us), dense_us, least_us, "the fewest weights that were measured"
        )
        budget = LatencyBudget(self._predictor.latency_us, limit)
        self.allowance = DensityAllowance(groups, budget, least, self._settle)

    @property
    def dense_us(self) -> float:
        """Predicted latency of the dense network, in microseconds."""
        return float(self._predictor.latency_us(self._sizes))

    @property
    def correction(self) -> Correction:
        """From sums of rows to predictions."""
        return self._predictor.correction or self._loop.profile.latency.correction

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Turns of the closed loop on the device."""
        return tuple(Turn(**turn) for turn in self.allowance.record)

    def predicted_us(self, alive: Tensor) -> float:
        """Predicted latency with the living weights, a mask ``(weights,)``, in microseconds."""
        return float(self._predictor.latency_us(self.allowance.counts(alive)))

    def _settle(self, allowance: DensityAllowance, ladders: Sequence[Ladder]) -> Widths:
        if not self._measures:
            return allowance.fitted(ladders)
        counts, allowance.limit, turns = from_first(
            lambda: settle_on_device(
                self._loop,
                self._predictor.operators,
                allowance.budget,
                self._allowed_us,
                lambda budget: fit_counts(budget, ladders),
                self._sizes,
            )
        )
        allowance.record = [asdict(turn) for turn in turns]
        return counts
