"""Pictures of a profile: the staircases that its table holds, and how far its predictions are off."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from hwprune import charts
from hwprune.device.kinds import along_axes
from hwprune.device.rows import Row
from hwprune.operators import Operator
from hwprune.profile_check import NetworkError

#: Curves of one picture, and the fewest widths that make a curve.
MOST_CURVES, LEAST_WIDTHS = 6, 3


def staircases(rows: Iterable[Row]) -> dict[str, str]:
    """Latency over the number of output channels, a picture per family of operators.

    Args:
        rows: Of a table.

    Returns:
        Name of the family, fit for a file, to an ``<svg>`` element. Families whose operators were not
        measured at several widths have none.
    """
    families: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in _at_full_input(rows):
        families[_family(row.operator)][_curve(row)].append(row)
    return {
        family: charts.line_chart(
            [_line(label, curve) for label, curve in chosen],
            x_label="output channels",
            y_label="measured latency (us)",
            title=f"{family}: latency over the output channels",
        )
        for family, curves in sorted(families.items())
        if (chosen := _longest(curves))
    }


def agreement(errors: Sequence[NetworkError]) -> str:
    """Predicted over measured latency, a cloud of points per network, as an ``<svg>`` element."""
    clouds: dict[str, list[NetworkError]] = defaultdict(list)
    for error in errors:
        clouds[error.name.partition(" ")[0]].append(error)
    lines = [
        charts.Line(name, [error.measured_us for error in cloud], [error.predicted_us for error in cloud])
        for name, cloud in clouds.items()
    ]
    return charts.diagonal_chart(
        lines, x_label="measured (us)", y_label="predicted (us)", title="Predicted against measured latency"
    )


def _at_full_input(rows: Iterable[Row]) -> list[Row]:
    """Rows at the widest input that was measured of their curve; all rows of operators without a matrix."""
    by_curve: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_curve[_family(row.operator), _curve(row)].append(row)
    kept = []
    for curve in by_curve.values():
        widest = max(row.operator.in_channels for row in curve)
        matrix = curve[0].operator.matrix
        kept += [row for row in curve if not matrix or row.operator.in_channels == widest]
    return kept


def _family(operator: Operator) -> str:
    kind = f"depthwise-{operator.kind}" if operator.depthwise else operator.kind
    kernel = operator.kernel_h, operator.kernel_w
    return kind if kernel == (1, 1) else f"{kind}-{kernel[0]}x{kernel[1]}"


def _curve(row: Row) -> str:
    operator = row.operator
    stride = f", stride {along_axes(operator.strides)}" if operator.strides != (1, 1) else ""
    among = f", among {row.among / (1 << 20):g} MiB" if row.among else ""
    return f"{operator.height}x{operator.width}{stride}{among}"


def _longest(curves: Mapping[str, list[Row]]) -> list[tuple[str, list[Row]]]:
    """The curves with the most widths, those on large maps first."""
    long = {label: curve for label, curve in curves.items() if len(_widths(curve)) >= LEAST_WIDTHS}
    ordered = sorted(long.items(), key=lambda item: -len(_widths(item[1])))[:MOST_CURVES]
    return sorted(ordered, key=lambda item: -item[1][0].operator.height)


def _widths(curve: Iterable[Row]) -> set[int]:
    return {row.operator.out_channels for row in curve}


def _line(label: str, curve: Sequence[Row]) -> charts.Line:
    operator = curve[0].operator
    label += f", {operator.in_channels} inputs" if operator.matrix else ""
    slowest = {
        row.operator.out_channels: row.undisturbed_us
        for row in sorted(curve, key=lambda row: row.undisturbed_us)
    }
    widths = sorted(slowest)
    return charts.Line(label, widths, [slowest[width] for width in widths])
