"""A network's latency from how many weights of every layer are left, where kernels skip zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hwprune.device.correction import Correction
from hwprune.device.predict import table_of
from hwprune.device.profile import DeviceProfile
from hwprune.device.steps import FloatArray, IntArray
from hwprune.operators import Operator


@dataclass(frozen=True, eq=False)
class DensityPredictor:
    """The latency of a network of unchanged shape at any numbers of weights that are left.

    Attributes:
        operators: Fused operators of the dense network.
        layers: Per operator, the position of the layer whose weights it has; -1 for none that is pruned.
        sizes: Shape ``(layers,)``: weights of every layer.
        profile: The device, whose table has rows at several densities.
        correction: From sums of rows to latencies; the profile's calibration and overhead by default.
    """

    operators: Sequence[Operator]
    layers: Sequence[int]
    sizes: IntArray
    profile: DeviceProfile
    correction: Correction | None = None

    def corrected(self, correction: Correction) -> DensityPredictor:
        """The same prediction with another correction."""
        return replace(self, correction=correction)

    def weights_mib(self, counts: IntArray) -> FloatArray:
        """Zeros of shape ``(...)``: kernels that skip weights keep them in a form of their own."""
        return np.zeros(np.shape(counts)[:-1])

    def latency_us(self, counts: IntArray) -> FloatArray:
        """Predicted latency of networks.

        Args:
            counts: Shape ``(..., layers)``: weights that are left of every layer.

        Returns:
            Microseconds, shape ``(...)``.

        Raises:
            MissingRowError: If the table lacks an operator, or has it at one density only.
        """
        density = np.asarray(counts) / self.sizes
        total = np.full(density.shape[:-1], self._fixed_us)
        for layer, (known, prices) in self._curves:
            total += np.interp(density[..., layer], known, prices)
        latency = self.profile.latency
        correction = self.correction or latency.correction
        total = correction.latency_us(total, self.weights_mib(counts))
        return total + latency.per_operator_us * len(self.operators)

    def least_counts(self) -> IntArray:
        """Shape ``(layers,)``: fewer weights save nothing more; all, of layers that save nothing."""
        least = self.sizes.copy()
        for layer, (known, prices) in self._curves:
            # A kernel that skips zeros may well be slower than the one that does not, at every density.
            fastest = known[len(known) - 1 - int(np.argmin(prices[::-1]))]
            least[layer] = min(least[layer], max(int(fastest * self.sizes[layer]), 1))
        return least

    @cached_property
    def _fixed_us(self) -> float:
        """The sum of the operators without weights that are pruned."""
        table = table_of(self.profile)
        return sum(
            table.latency_us(operator, self.profile.steps_for(operator))
            for operator, layer in zip(self.operators, self.layers, strict=True)
            if layer < 0
        )

    @cached_property
    def _curves(self) -> list[tuple[int, tuple[FloatArray, FloatArray]]]:
        """Layer, densities and microseconds of every operator with weights that are pruned."""
        table = table_of(self.profile)
        found = []
        for operator, layer in zip(self.operators, self.layers, strict=True):
            if layer >= 0:
                steps = self.profile.steps_for(operator)
                known = table.densities(operator, steps)
                if len(known) < 2:
                    # Raises, and names the row that is missing.
                    table.latency_us(replace(operator, density=0.5), steps)
                prices = [table.latency_us(replace(operator, density=value), steps) for value in known]
                found.append((layer, (np.array(known), np.array(prices))))
        return found
