"""Latency tables: measured operators, looked up and interpolated along their channels, never extrapolated."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from hwprune.device import table_file
from hwprune.device.commands import BUILD_COMMAND, with_placeholders_told
from hwprune.device.kernel_factors import NO_FACTORS, KernelFactors
from hwprune.device.kinds import configuration, describe
from hwprune.device.rows import Row
from hwprune.device.steps import FloatArray, IntArray, Steps
from hwprune.device.surface import Surface, surface_of
from hwprune.device.working_set import nearest, size_class
from hwprune.errors import MissingRowError
from hwprune.operators import Operator


@dataclass(frozen=True)
class LatencyTable:
    """Measured latencies of operators.

    A lookup rounds channels up to the end of their step, then interpolates linearly between measured
    steps, first along the output channels, then along the input channels. Between two measured steps that
    do not lie at the same place of the staircase's period nothing is interpolated, and nothing is ever
    extrapolated: what is not measured raises.

    Attributes:
        rows: The rows, no two of the same operator measured among as many bytes.
        batch: Images per run that they were measured with.
        precision: Precision that they were measured in.
        origin: Where they come from, for messages.
        command: What measures missing rows, for messages.
        factors: What prices are multiplied by; the rows stay as they were measured.

    >>> conv = Operator("conv", 8, 16, 4, 4, 3, 3, padding=1)
    >>> table = LatencyTable((Row(conv, 10.0), Row(replace(conv, out_channels=32), 14.0)))
    >>> table.latency_us(replace(conv, out_channels=20), Steps(align=8))
    12.0
    """

    rows: tuple[Row, ...]
    batch: int = 1
    precision: str = "fp32"
    origin: str = field(default="this table", compare=False)
    command: str = field(default=BUILD_COMMAND, compare=False)
    factors: KernelFactors = NO_FACTORS

    @classmethod
    def read(cls, path: Path, command: str = BUILD_COMMAND) -> LatencyTable:
        """Reads and validates a table.

        Args:
            path: The file.
            command: What measures rows that are missing.

        Raises:
            ProfileError: If it is missing or malformed; the message names file, line and column.
        """
        content = table_file.read(path)
        return cls(content.rows, content.batch, content.precision, str(path), command)

    def write(self, path: Path, header: Mapping[str, object]) -> None:
        """Writes the table, sorted, atomically.

        Args:
            path: The file.
            header: What the comment lines at the top say: hardware, engine, date, command.
        """
        table_file.write(path, table_file.Content(self.rows, self.batch, self.precision), header)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @cached_property
    def _by_configuration(self) -> dict[Operator, list[Row]]:
        found: dict[Operator, list[Row]] = {}
        for row in self.rows:
            found.setdefault(configuration(row.operator), []).append(row)
        for row in self.rows:
            # A convolution in groups that is left one input for each group is measured as what it is then.
            grouped = _in_groups(row.operator)
            if row.operator.depthwise and grouped in found:
                found[grouped].append(row)
        return found

    @cached_property
    def _densities(self) -> dict[Operator, set[float]]:
        """Configuration with all weights to the densities that have rows."""
        found: dict[Operator, set[float]] = {}
        for key in self._by_configuration:
            found.setdefault(replace(key, density=1.0), set()).add(key.density)
        return found

    @cached_property
    def operators(self) -> frozenset[Operator]:
        """The operators that have a row, without their names."""
        return frozenset(row.operator for row in self.rows)

    @cached_property
    def of_medians(self) -> bool:
        """Whether rows count their medians: written before it was measured what they take undisturbed."""
        return bool(self.rows) and all(row.undisturbed_us == row.median_us for row in self.rows)

    def merged(self, rows: Iterable[Row]) -> LatencyTable:
        """A table with ``rows`` added; where both have an operator among as many bytes the new row counts."""
        merged = {(row.operator, row.among): row for row in self.rows}
        merged.update(((row.operator, row.among), row) for row in rows)
        return replace(self, rows=tuple(merged.values()))

    @cached_property
    def _parts(self) -> dict[int, LatencyTable]:
        """The rows by how many bytes they were measured among."""
        parts: dict[int, list[Row]] = {}
        for row in self.rows:
            parts.setdefault(row.among, []).append(row)
        return {among: replace(self, rows=tuple(rows)) for among, rows in parts.items()}

    def among(self, working_set: int) -> LatencyTable:
        """The rows that were measured among about so many bytes, and those of which that was not noted.

        Args:
            working_set: Bytes.
        """
        parts = [self._parts.get(size) for size in (0, size_class(working_set))]
        rows = {row.operator: row for part in parts if part is not None for row in part.rows}
        return replace(self, rows=tuple(rows.values()))

    def for_network(self, wanted: Iterable[tuple[Operator, Steps]], working_set: int) -> LatencyTable:
        """A table of no two rows of one operator: those for a network that goes through so many bytes.

        Of every configuration the rows that were measured among the next number of bytes count, of those that
        cover what is wanted of it; where none do, all of them.

        Args:
            wanted: Operators, and the staircases of the device.
            working_set: Bytes.
        """
        if len(self._parts) < 2:
            return self
        parts = [self._parts[size] for size in nearest(self._parts, working_set)]
        needed: dict[Operator, list[tuple[Operator, Steps]]] = {}
        for operator, steps in wanted:
            needed.setdefault(configuration(operator), []).append((operator, steps))
        rows: dict[Operator, Row] = {}
        for key in self._by_configuration:
            having = [part for part in parts if key in part._by_configuration]
            covering = _covering(having, needed[key]) if key in needed else having[0]
            for part in reversed(having) if covering is None else [covering]:
                rows.update((row.operator, row) for row in part._by_configuration[key])
        return replace(self, rows=tuple(rows.values()))

    def bytes_among(self, operators: Iterable[Operator]) -> int:
        """About how many bytes most rows of operators with weights were measured among; 0 where not noted.

        Args:
            operators: Of a network that the table was chosen for.
        """
        keys = {configuration(operator) for operator in operators if operator.weighted}
        among = Counter(row.among for key in keys for row in self._by_configuration.get(key, ()))
        return max(among, key=lambda size: among[size], default=0)

    def surface(self, template: Operator, steps: Steps) -> Surface:
        """Everything known about one configuration.

        Args:
            template: An operator of that configuration; its channels do not matter.
            steps: The staircase of the device.

        Raises:
            MissingRowError: If the table has no row of that configuration.
        """
        rows = self._by_configuration.get(configuration(template))
        if not rows:
            raise self._missing(template, "no row of this configuration")
        return surface_of(tuple(rows), template.matrix, steps).times(self.factors.of(template))

    def _priced_by(self, operator: Operator, steps: Steps, grouped: Steps | None = None) -> Surface | None:
        """The surface that has a price for the operator, ``None`` where there is none.

        A depthwise convolution may be what is left of one in groups, of which there are more rows.
        """
        channels = np.array([operator.in_channels]), np.array([operator.out_channels])
        kinds = [(configuration(operator), operator.matrix, steps)]
        if operator.depthwise:
            kinds.append((_in_groups(operator), True, grouped or steps))
        for key, matrix, staircase in kinds:
            if rows := self._by_configuration.get(key):
                surface = surface_of(tuple(rows), matrix, staircase).times(self.factors.of(operator))
                if not np.isnan(surface.latencies_us(*channels)).any():
                    return surface
        return None

    def latencies_us(
        self, template: Operator, in_channels: IntArray, out_channels: IntArray, steps: Steps
    ) -> FloatArray:
        """Latencies of one configuration at many widths.

        Args:
            template: An operator of that configuration; its own channels do not matter.
            in_channels: Any shape.
            out_channels: A shape that broadcasts with it.
            steps: The staircase of the device.

        Returns:
            Microseconds, in the broadcast shape.

        Raises:
            MissingRowError: If one of them cannot be priced; the message names it.
        """
        latencies = self.surface(template, steps).latencies_us(in_channels, out_channels)
        if np.isnan(latencies).any():
            first = int(np.flatnonzero(np.isnan(latencies.ravel()))[0])
            inputs, outputs = np.broadcast_arrays(in_channels, out_channels)
            raise self.missing(template, int(inputs.ravel()[first]), int(outputs.ravel()[first]), steps)
        return latencies

    def densities(self, operator: Operator, steps: Steps) -> tuple[float, ...]:
        """The densities at which the operator was measured, ascending."""
        whole = replace(configuration(operator), density=1.0)
        found = self._densities.get(whole, ())
        return tuple(sorted(d for d in found if self.covers(replace(operator, density=d), steps)))

    def latency_us(
        self,
        operator: Operator,
        steps: Steps = Steps(),  # noqa: B008 - frozen
        grouped: Steps | None = None,
    ) -> float:
        """Latency of one operator in microseconds.

        Between two densities that were measured it is interpolated. Fewer weights than the least density cost
        as much as that.

        Args:
            operator: Any.
            steps: Its staircase.
            grouped: Of a depthwise convolution, the staircase of one in as many groups that has more inputs,
                of which it may be what is left; like ``steps`` by default.

        Raises:
            MissingRowError: If the table cannot price it.
        """
        if operator.density < 1:
            known = self.densities(operator, steps)
            if len(known) < 2:
                raise self._missing(operator, "no rows at several densities")
            if operator.density not in known:
                prices = [self.latency_us(replace(operator, density=density), steps) for density in known]
                return float(np.interp(operator.density, known, prices))
        surface = self._priced_by(operator, steps, grouped)
        channels = np.array([operator.in_channels]), np.array([operator.out_channels])
        if surface is None:
            return float(self.latencies_us(operator, *channels, steps)[0])  # which says what is missing
        return float(surface.latencies_us(*channels)[0])

    def covers(self, operator: Operator, steps: Steps = Steps()) -> bool:  # noqa: B008 - frozen
        """Whether the operator has a price."""
        return self._priced_by(operator, steps) is not None

    def covers_narrower(self, operator: Operator, steps: Steps) -> bool:
        """Whether the operator has a price, and has one at every smaller number of channels that may be left.

        Within a single step widths must have been measured themselves: rounded up to the step they would all
        cost the same.
        """
        if operator.density < 1:
            return self.covers(operator, steps)  # zeros are priced at the width of the network alone
        if not self._has_rows(operator) or not self.covers(operator, steps):
            return False
        inputs, outputs = map(np.array, map(steps.narrower, (operator.in_channels, operator.out_channels)))
        if operator.depthwise:  # a single channel is no depthwise convolution
            inputs, outputs = inputs[inputs > 1], outputs[outputs > 1]
        if not self._measured_within(operator, steps.align, inputs, outputs):
            return False
        inputs = inputs[:, None] if operator.matrix else outputs
        return not bool(np.isnan(self.surface(operator, steps).latencies_us(inputs, outputs)).any())

    def _has_rows(self, operator: Operator) -> bool:
        """Whether there are rows of its own configuration, rather than of what it may be left of."""
        return configuration(operator) in self._by_configuration

    def _measured_within(self, operator: Operator, step: int, inputs: IntArray, outputs: IntArray) -> bool:
        """Whether every width of sides that are no wider than one step has a row, and every pair of such."""
        rows = [row.operator for row in self._by_configuration[configuration(operator)]]
        if operator.in_channels > step and operator.out_channels > step:
            return True
        if operator.out_channels > step:
            return {row.in_channels for row in rows}.issuperset(inputs.tolist())
        if operator.in_channels > step or not operator.matrix:
            return {row.out_channels for row in rows}.issuperset(outputs.tolist())
        pairs = {(row.in_channels, row.out_channels) for row in rows}
        return pairs.issuperset(itertools.product(inputs.tolist(), outputs.tolist()))

    def covers_unaligned(self, operator: Operator, steps: Steps, least: float) -> bool:
        """Whether the operator has a price at every width, on a step or off it, from a fraction of its own.

        Args:
            operator: At its full width.
            steps: The staircase of the device.
            least: The fraction.
        """
        if not self._has_rows(operator) or not self.covers(operator, steps):
            return False
        unit = 1 if operator.depthwise else operator.groups
        inputs, outputs = (
            np.arange(max(-int(-channels * least // unit), 1) * unit, channels + 1, unit)
            for channels in (operator.in_channels, operator.out_channels)
        )
        if operator.depthwise:
            outputs = outputs[outputs > 1]
        inputs = inputs[:, None] if operator.matrix else outputs
        return not bool(np.isnan(self.surface(operator, steps).latencies_us(inputs, outputs)).any())

    def missing(
        self, template: Operator, in_channels: int, out_channels: int, steps: Steps
    ) -> MissingRowError:
        """The error for an operator that cannot be priced, naming the row that is wanted."""
        wanted_in = in_channels if in_channels % steps.divisor else steps.round_up(in_channels)
        wanted_out = steps.round_up(out_channels)
        operator = replace(template, in_channels=in_channels, out_channels=out_channels)
        return self._missing(operator, f"no row at or around {wanted_in}->{wanted_out} channels")

    def _missing(self, operator: Operator, got: str) -> MissingRowError:
        where = f"layer {operator.name}, {self.origin}" if operator.name else self.origin
        return MissingRowError(
            f"the latency table cannot price {describe(operator)}",
            where=where,
            got=got,
            hint=f"measure what the network needs with: {with_placeholders_told(self.command)}",
        )


def _covering(parts: Sequence[LatencyTable], wanted: Sequence[tuple[Operator, Steps]]) -> LatencyTable | None:
    """The first table that prices all operators at every smaller width, else the first that prices them."""
    for covers in (LatencyTable.covers_narrower, LatencyTable.covers):
        for part in parts:
            if all(covers(part, operator, steps) for operator, steps in wanted):
                return part
    return None


def _in_groups(operator: Operator) -> Operator:
    """The configuration of a convolution in as many groups that has more than one input for each."""
    return replace(configuration(operator), groups=operator.groups)
