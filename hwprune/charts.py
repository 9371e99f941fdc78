"""Charts as inline SVG, readable in light and dark and without a network connection.

They need matplotlib (extra ``report``); without it pages carry their tables only.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

#: Colours that stay apart for colour-blind readers (Okabe and Ito), with a marker each for print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
#: Stands for the colour of the text until the page's own takes its place.
_INK = "#010203"


@dataclass(frozen=True, slots=True)
class Line:
    """A curve or a cloud of points.

    Attributes:
        label: In the legend.
        x: Positions.
        y: Heights.
        joined: Whether the points are joined.
        marked: Whether the points have markers.
        labels: A label per point, or nothing.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    joined: bool = True
    marked: bool = True
    labels: Sequence[str] = ()


def available() -> bool:
    """Whether charts can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str, title: str) -> str:
    """Curves or clouds of points over common axes.

    Args:
        lines: At least one.
        x_label: With its unit.
        y_label: With its unit.
        title: Told to screen readers.

    Returns:
        An ``<svg>`` element.
    """
    with _axes(title) as (axes, drawn):
        for index, line in enumerate(lines):
            axes.plot(
                line.x,
                line.y,
                label=line.label,
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)] if line.marked else "",
                markersize=4,
                linestyle="-" if line.joined else "none",
            )
            for x, y, label in zip(line.x, line.y, line.labels, strict=False):
                axes.annotate(label, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
        if all(float(x).is_integer() for line in lines for x in line.x):
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
    return drawn[0]


def diagonal_chart(lines: Sequence[Line], *, x_label: str, y_label: str, title: str) -> str:
    """Points around the diagonal on which both axes agree; logarithmic where they span a decade.

    Args:
        lines: Clouds of points.
        x_label: With its unit.
        y_label: With its unit.
        title: Told to screen readers.
    """
    with _axes(title) as (axes, drawn):
        values = [value for line in lines for value in (*line.x, *line.y)]
        ends = [min(values) * 0.9, max(values) * 1.1]
        axes.plot(ends, ends, color=_INK, linewidth=0.8)
        for index, line in enumerate(lines):
            axes.plot(
                line.x,
                line.y,
                MARKERS[index % len(MARKERS)],
                markersize=4,
                color=COLOURS[index % len(COLOURS)],
                label=line.label,
            )
        if ends[1] > 10 * ends[0]:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=8)
    return drawn[0]


def staircases(layers: Sequence[Mapping[str, Any]], *, columns: int = 4) -> str:
    """The predicted latency of the whole network over the width of each layer, with the choice marked.

    Args:
        layers: Entries of the report with ``name``, ``width_after`` and ``staircase``.
        columns: Charts per row.
    """
    import matplotlib.pyplot as plt

    rows = -(-len(layers) // columns)
    with _style():
        figure, grid = plt.subplots(
            rows, columns, figsize=(2.4 * columns, 1.9 * rows), squeeze=False, layout="constrained"
        )
        for axes in grid.ravel()[len(layers) :]:
            axes.set_visible(False)
        for axes, layer in zip(grid.ravel(), layers, strict=False):
            widths, latencies = zip(*layer["staircase"], strict=True)
            chosen = dict(layer["staircase"]).get(layer["width_after"])
            axes.step(widths, latencies, where="pre", color=COLOURS[0], linewidth=1.2)
            if chosen is not None:
                axes.plot([layer["width_after"]], [chosen], "o", color=COLOURS[1], markersize=5)
            axes.set_title(layer["name"], fontsize=7)
            axes.tick_params(labelsize=6)
        figure.supxlabel("width (channels)", fontsize=8)
        figure.supylabel("whole network, predicted (us)", fontsize=8)
        return _svg(figure, "Predicted latency over the width of each layer")


@contextmanager
def _axes(title: str) -> Iterator[tuple[Any, list[str]]]:
    import matplotlib.pyplot as plt

    drawn: list[str] = []
    with _style():
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        yield axes, drawn
        axes.spines[["top", "right"]].set_visible(False)
        drawn.append(_svg(figure, title))


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "hwprune",
        "font.family": "sans-serif",
        **dict.fromkeys(ink, _INK),
    }
    backend = matplotlib.get_backend()
    matplotlib.use("svg")
    try:
        with matplotlib.rc_context(settings):
            yield
    finally:
        matplotlib.use(backend)


def _svg(figure: Any, title: str) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Several charts share a page: their ids must not meet.
    salt = re.sub(r"\W+", "-", title)
    text = re.sub(r'\bid="', f'id="{salt}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{salt}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" class="chart" ', 1)
