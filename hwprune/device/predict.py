"""A network's latency from its operators, the table and the calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from hwprune.device.commands import with_placeholders_told
from hwprune.device.correction import Correction, mib
from hwprune.device.profile import DeviceProfile
from hwprune.device.surface import Surface
from hwprune.device.table import LatencyTable
from hwprune.errors import ProfileError
from hwprune.operators import Operator

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

#: Operators times networks that are priced in one go, so that intermediate arrays stay in the caches.
_CHUNK = 1 << 15


@dataclass(frozen=True, slots=True)
class LayerLatency:
    """Predicted latency of one fused operator."""

    name: str
    kind: str
    in_channels: int
    out_channels: int
    latency_us: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted latency of a network, in microseconds; an estimate from measured rows.

    Attributes:
        total_us: The whole network with the session's overhead.
        layers: Every operator, calibrated, in execution order.
        overhead_us: The part of the total that no operator accounts for.
    """

    total_us: float
    layers: tuple[LayerLatency, ...]
    overhead_us: float


def table_of(profile: DeviceProfile) -> LatencyTable:
    """The table of a profile.

    Raises:
        ProfileError: If it is a template without one.
    """
    if profile.table is None:
        raise ProfileError(
            f"the profile {profile.name} is a template without a latency table",
            where=profile.folder,
            expected="measured rows",
            hint=f"measure them on the device with: {with_placeholders_told(profile.build_command())}",
        )
    return profile.table


def predict_operators(operators: Sequence[Operator], profile: DeviceProfile) -> Prediction:
    """Predicts the latency of a network from its fused operators.

    Args:
        operators: In execution order.
        profile: The device.

    Raises:
        MissingRowError: If an operator is not in the table.
        ProfileError: If the profile has no table.
    """
    profile = profile.for_network(operators, pruned=False)
    table, latency = table_of(profile), profile.latency
    layers = tuple(
        LayerLatency(
            operator.name,
            operator.kind,
            operator.in_channels,
            operator.out_channels,
            latency.calibration
            * table.latency_us(operator, profile.steps_for(operator), profile.grouped_steps_for(operator))
            + latency.per_operator_us,
        )
        for operator in operators
    )
    weights = np.array(sum(operator.weights for operator in operators))
    overhead_us = latency.overhead_us + float(latency.correction.spilling_us(mib(weights)))
    return Prediction(overhead_us + sum(layer.latency_us for layer in layers), layers, overhead_us)


@dataclass(frozen=True, slots=True, eq=False)
class _Stack:
    """The surfaces of all operators, flattened so that one indexing prices them together.

    Attributes:
        row_start: Shape ``(operators,)``: where the widths of each operator begin in ``row_*``.
        row_widest: The number of its widths, less one.
        row_low: For every number of input channels, the position of the row of values below.
        row_high: The same above.
        row_part: How far it is from low to high.
        values: All surfaces, one after the other, in microseconds.
        column_start, column_widest, column_low, column_high, column_part: The same for output channels.
    """

    row_start: IntArray
    row_widest: IntArray
    row_low: IntArray
    row_high: IntArray
    row_part: FloatArray
    column_start: IntArray
    column_widest: IntArray
    column_low: IntArray
    column_high: IntArray
    column_part: FloatArray
    values: FloatArray

    @classmethod
    def of(cls, surfaces: Sequence[Surface]) -> _Stack:
        rows = [surface.rows for surface in surfaces]
        columns = [surface.columns for surface in surfaces]
        heights = [surface.values.shape[0] for surface in surfaces]
        strides = [surface.values.shape[1] for surface in surfaces]
        starts = _starts([surface.values.size for surface in surfaces])
        # A position of -1 (no price) becomes the last row or column, which holds NaN.
        placed = list(zip(rows, heights, strides, starts, strict=True))
        return cls(
            _starts([item.low.size for item in rows]),
            np.array([item.low.size - 1 for item in rows]),
            np.concatenate([item.low % height * stride + start for item, height, stride, start in placed]),
            np.concatenate([item.high % height * stride + start for item, height, stride, start in placed]),
            np.concatenate([item.fraction for item in rows]),
            _starts([item.low.size for item in columns]),
            np.array([item.low.size - 1 for item in columns]),
            np.concatenate([item.low % stride for item, stride in zip(columns, strides, strict=True)]),
            np.concatenate([item.high % stride for item, stride in zip(columns, strides, strict=True)]),
            np.concatenate([item.fraction for item in columns]),
            np.concatenate([surface.values.ravel() for surface in surfaces]),
        )

    def latencies_us(self, inputs: IntArray, outputs: IntArray) -> FloatArray:
        """Latencies of every operator, ``(networks, operators)`` like both arguments."""
        row = self.row_start + np.clip(inputs, 0, self.row_widest)
        column = self.column_start + np.clip(outputs, 0, self.column_widest)
        left, right, across = self.column_low[column], self.column_high[column], self.column_part[column]
        above, below, down = self.row_low[row], self.row_high[row], self.row_part[row]
        values = self.values
        top = values[above + left]
        top += across * (values[above + right] - top)
        bottom = values[below + left]
        bottom += across * (values[below + right] - bottom)
        return np.asarray(top + down * (bottom - top))


def _starts(sizes: Sequence[int]) -> IntArray:
    return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class WidthPredictor:
    """The latency of a network at any widths of its axes, without building it.

    Attributes:
        operators: Fused operators of the dense network.
        in_loss: Shape ``(operators, axes)``: input channels an operator loses per channel of the axis.
        out_loss: Shape ``(operators, axes)``: likewise for output channels.
        dense_widths: Shape ``(axes,)``.
        profile: The device.
        correction: From sums of rows to latencies; the profile's calibration and overhead by default.
    """

    operators: Sequence[Operator]
    in_loss: IntArray
    out_loss: IntArray
    dense_widths: IntArray
    profile: DeviceProfile
    correction: Correction | None = None

    def corrected(self, correction: Correction) -> Self:
        """The same prediction with another correction."""
        return replace(self, correction=correction)

    def latency_us(self, widths: IntArray) -> FloatArray:
        """Predicted latency of networks.

        Args:
            widths: Shape ``(..., axes)``.

        Returns:
            Microseconds, shape ``(...)``.

        Raises:
            MissingRowError: If an operator at these widths is not covered by the table.
        """
        flat = np.asarray(widths, dtype=np.int64).reshape(-1, self.dense_widths.size)
        chunk = max(1, _CHUNK // max(len(self.operators), 1))
        parts = [self._chunk_us(flat[start : start + chunk]) for start in range(0, flat.shape[0], chunk)]
        total = np.concatenate(parts) if parts else np.zeros(0)
        return total.reshape(np.shape(widths)[:-1])

    def weights_mib(self, widths: IntArray) -> FloatArray:
        """What all weights take in single precision: widths ``(..., axes)`` to MiB ``(...)``."""
        flat = np.asarray(widths, dtype=np.int64).reshape(-1, self.dense_widths.size)
        return self._mib(*self._channels(flat)).reshape(np.shape(widths)[:-1])

    @cached_property
    def _chosen(self) -> DeviceProfile:
        """The profile for this network."""
        return self.profile.for_network(self.operators, pruned=True)

    @property
    def _table(self) -> LatencyTable:
        return table_of(self._chosen)

    @cached_property
    def _stack(self) -> _Stack:
        table = self._table
        return _Stack.of(
            [table.surface(operator, self.profile.steps_for(operator)) for operator in self.operators]
        )

    @cached_property
    def _losses(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Dense channels and losses as floats: exact at these sizes, and multiplied by BLAS."""
        inputs = np.array([operator.in_channels for operator in self.operators], dtype=np.float64)
        outputs = np.array([operator.out_channels for operator in self.operators], dtype=np.float64)
        return inputs, self.in_loss.T.astype(np.float64), outputs, self.out_loss.T.astype(np.float64)

    @cached_property
    def _weights_per_product(self) -> FloatArray:
        """Shape ``(operators,)``: per input times output channel, or per channel of a depthwise one."""
        products = [
            each.out_channels * (1 if each.depthwise else each.in_channels) for each in self.operators
        ]
        return np.array([each.weights for each in self.operators]) / np.maximum(products, 1)

    @cached_property
    def _depthwise(self) -> BoolArray:
        return np.array([operator.depthwise for operator in self.operators], dtype=np.bool_)

    def _chunk_us(self, widths: IntArray) -> FloatArray:
        """Latency per network, in microseconds: widths ``(networks, axes)`` to ``(networks,)``."""
        latency = self._chosen.latency
        correction = self.correction or latency.correction
        inputs, outputs = self._channels(widths)
        weights = self._mib(inputs, outputs) if correction.spilled_us else np.zeros(len(widths))
        sums = self._sums(inputs, outputs)
        return correction.latency_us(sums, weights) + latency.per_operator_us * len(self.operators)

    def _mib(self, inputs: IntArray, outputs: IntArray) -> FloatArray:
        """What all weights take: channels ``(networks, operators)`` to MiB ``(networks,)``."""
        products = outputs * np.where(self._depthwise, 1, inputs)
        return mib(products @ self._weights_per_product)

    def _channels(self, widths: IntArray) -> tuple[IntArray, IntArray]:
        """Input and output channels of every operator, ``(networks, operators)`` each."""
        lost = (self.dense_widths - widths).astype(np.float64)
        dense_in, in_loss, dense_out, out_loss = self._losses
        inputs = (dense_in - lost @ in_loss).astype(np.int64)
        outputs = (dense_out - lost @ out_loss).astype(np.int64)
        return inputs, outputs

    def _sums(self, inputs: IntArray, outputs: IntArray) -> FloatArray:
        """Sum of rows per network, in microseconds."""
        if not self.operators:
            return np.zeros(inputs.shape[0])
        latencies = self._stack.latencies_us(inputs, outputs)
        sums = latencies.sum(axis=1)
        if np.isnan(sums).any():
            network, row = np.argwhere(np.isnan(latencies))[0]
            operator = self.operators[row]
            raise self._table.missing(
                operator,
                int(inputs[network, row]),
                int(outputs[network, row]),
                self.profile.steps_for(operator),
            )
        return np.asarray(sums)
