"""The charts of the page about variants: accuracy against latency, and predicted against measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hwprune import charts
from hwprune.measured_on import stand_in_lines
from hwprune.page import Markup, figure
from hwprune.run_page import target_label

Record = Mapping[str, Any]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that none other beats in both, by latency.

    Args:
        points: Latency and accuracy of each.

    >>> pareto_front([(3.0, 0.9), (1.0, 0.7), (2.0, 0.6), (2.5, 0.9)])
    [1, 3]
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda at: (points[at][0], -points[at][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def accuracy_over_latency(entries: Sequence[Record], device: str) -> list[Markup]:
    """The networks of a device and which of them none beats, dense as the reference.

    Args:
        entries: Variants that were measured.
        device: Only those for it are drawn.
    """
    entries = [entry for entry in entries if entry["device"] == device]
    if not entries or not charts.available():
        return []
    networks = [line for line in _lines(entries) if line.x]
    points = [point for line in networks for point in zip(line.x, line.y, strict=True)]
    front = [points[at] for at in pareto_front(points)]
    lines = [
        charts.Line("Pareto front", [x for x, _ in front], [y for _, y in front], ringed=True),
        *networks,
    ]
    svg = charts.line_chart(
        lines, x_label="measured latency (us)", y_label="test accuracy (%)", title=f"Accuracy on {device}"
    )
    caption = "Labels are targets; dense networks, as timed with their first variant, are the reference."
    return [figure(svg, " ".join((caption, *(f"{line}." for line in stand_in_lines(entries)))))]


def _lines(entries: Sequence[Record]) -> list[charts.Line]:
    """The networks of every model, the dense one once, and apart those on 8 bits."""
    lines = []
    for model in dict.fromkeys(entry["model"] for entry in entries):
        of_model = [entry for entry in entries if entry["model"] == model]
        # Every variant has timed the dense network anew; a reference is one.
        named = [("dense", of_model[0]["dense"]), *((_label(entry), entry["slim"]) for entry in of_model)]
        on_8_bits = [(_label(entry), entry["int8"]) for entry in of_model if "int8" in entry]
        lines += [_cloud(model, named), _cloud(f"{model}, int8", on_8_bits)]
    return lines


def _label(entry: Record) -> str:
    return target_label(entry["target"])


def _cloud(label: str, networks: Sequence[tuple[str, Record]]) -> charts.Line:
    """Networks with their labels at their measured latencies and accuracies in percent."""
    return charts.Line(
        label,
        [network["latency_us"]["median"] for _, network in networks],
        [100 * network["accuracy"] for _, network in networks],
        joined=False,
        labels=[name for name, _ in networks],
    )


def predicted_against_measured(entries: Sequence[Record]) -> list[Markup]:
    """How far predictions were off, device by device.

    Args:
        entries: Variants that were measured.
    """
    priced = [entry for entry in entries if None not in entry["predicted_us"].values()]
    if not priced or not charts.available():
        return []
    lines = []
    for device in dict.fromkeys(entry["device"] for entry in priced):
        pairs = [
            (entry["predicted_us"][name], entry[name]["latency_us"]["median"])
            for entry in priced
            for name in ("dense", "slim")
            if entry["device"] == device
        ]
        lines.append(charts.Line(device, [x for x, _ in pairs], [y for _, y in pairs]))
    svg = charts.diagonal_chart(
        lines, x_label="predicted (us)", y_label="measured (us)", title="Predicted against measured"
    )
    return [figure(svg, "Predictions are estimates from the devices' tables; on the line they are right.")]
