"""Charts as inline SVG, readable in light and dark and without a network connection.

They need matplotlib (extra ``report``); without it pages carry their tables only.
"""

from __future__ import annotations

import hashlib
import html
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
#: Width and height of a chart in inches: of its own, and beside others.
LARGE, SMALL = (5.2, 3.3), (2.6, 1.9)
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
        ringed: Whether the points are ringed: they are those of other lines, and the best of them.
        marked: Whether the points have markers.
        labels: A label per point, or nothing.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    joined: bool = True
    marked: bool = True
    ringed: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Box:
    """One box of a chart of what hangs together.

    Attributes:
        label: Its name.
        detail: What there is to say about it, briefly.
        value: Length of its bar; 0 for none.
        strong: Whether it stands out.
    """

    label: str
    detail: str
    value: float = 0.0
    strong: bool = True


def available() -> bool:
    """Whether charts can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str, title: str, small: bool = False) -> str:
    """Curves or clouds of points over common axes.

    Args:
        lines: At least one.
        x_label: With its unit.
        y_label: With its unit.
        title: Told to screen readers.
        small: Whether it stands beside others.

    Returns:
        An ``<svg>`` element.
    """
    with _axes(title, SMALL if small else LARGE) as (axes, drawn):
        for index, line in enumerate(lines):
            axes.plot(
                line.x,
                line.y,
                label=line.label,
                color=COLOURS[index % len(COLOURS)],
                marker="o" if line.ringed else MARKERS[index % len(MARKERS)] if line.marked else "",
                markersize=9 if line.ringed else 4,
                markerfacecolor="none" if line.ringed else None,
                linestyle="-" if line.joined else "none",
            )
            for x, y, label in zip(line.x, line.y, line.labels, strict=False):
                axes.annotate(label, (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
        if any(line.labels for line in lines):
            axes.margins(0.1)
        if all(float(x).is_integer() for line in lines for x in line.x):
            axes.xaxis.get_major_locator().set_params(integer=True)
        font = {"fontsize": 7} if small else {}
        axes.set_xlabel(x_label, **font)
        axes.set_ylabel(y_label, **font)
        if small:
            axes.tick_params(labelsize=7)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=7 if small else 8)
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


def box_chart(boxes: Sequence[Box], links: Sequence[tuple[int, int]], *, value_label: str, title: str) -> str:
    """Boxes under each other with lines between them and a bar beside each.

    Args:
        boxes: From top to bottom.
        links: Pairs of ascending positions of boxes, each with a line.
        value_label: What the bars are, with its unit.
        title: Told to screen readers.
    """
    longest = max((box.value for box in boxes), default=0.0) or 1.0
    with _axes(title, (9.0, 0.6 + 0.45 * len(boxes))) as (axes, drawn):
        for first, second in links:
            # Neighbours are joined straight down, all others around those between them.
            bend = 0.0 if second - first == 1 else 1.0 / (second - first)
            ends = {"xy": (0, second), "xytext": (0, first)}
            arrow = {"arrowstyle": "-", "connectionstyle": f"arc3,rad={bend}", "color": _INK, "lw": 0.8}
            axes.annotate("", **ends, arrowprops=arrow, zorder=1)
        for place, box in enumerate(boxes):
            colour = COLOURS[2] if box.strong else "#999999"
            axes.plot([0], [place], "s", color=colour, markersize=10, zorder=2)
            axes.text(0.25, place, f"{box.label}: {box.detail}", fontsize=8, va="center")
            if box.value:
                axes.barh(place, 2 * box.value / longest, left=6, height=0.5, color=COLOURS[0])
                axes.text(8.1, place, f"{box.value:.1f}", fontsize=8, va="center")
        axes.set_xlim(-1.5, 9)
        axes.set_ylim(len(boxes) - 0.4, -1)
        axes.text(6, -0.8, value_label, fontsize=8)
        axes.set_axis_off()
    return drawn[0]


def staircase(layer: Mapping[str, Any], of: str) -> str:
    """The predicted latency of the whole network over the width of one layer, with the choice marked.

    Args:
        layer: Entry of the report with ``name``, ``width_after`` and ``staircase``.
        of: The network; two charts of one page differ in it or in the layer.
    """
    widths, latencies = zip(*layer["staircase"], strict=True)
    chosen = dict(layer["staircase"]).get(layer["width_after"])
    title = f"Latency over the width of {layer['name']}, {of}"
    with _axes(title, SMALL) as (axes, drawn):
        # Up to a width the network is as slow as at that width.
        axes.step(widths, latencies, where="pre", color=COLOURS[0], linewidth=1.2)
        if chosen is not None:
            axes.plot([layer["width_after"]], [chosen], "o", color=COLOURS[1], markersize=5)
        axes.set_title(layer["name"], fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_xlabel("channels", fontsize=7)
        axes.set_ylabel("us", fontsize=7)
    return drawn[0]


@contextmanager
def _axes(title: str, size: tuple[float, float] = LARGE) -> Iterator[tuple[Any, list[str]]]:
    import matplotlib.pyplot as plt

    drawn: list[str] = []
    with _style():
        figure, axes = plt.subplots(figsize=size, layout="constrained")
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
    # A hundredth of a point is more than anyone sees, and a page may hold a hundred charts.
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)
    # Names are kept that something refers to, or that tell axes and legends from data. Several charts share a
    # page: their names must not meet.
    referred = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    salt = "c" + hashlib.sha256(title.encode()).hexdigest()[:12]

    def renamed(name: re.Match[str]) -> str:
        kept = name[1] in referred or name[1].startswith(("matplotlib.axis", "legend"))
        return f' id="{salt}-{name[1]}"' if kept else ""

    text = re.sub(r' id="([^"]*)"', renamed, text)
    text = re.sub(r'(href="|url\()#', rf"\1#{salt}-", text)
    text = re.sub(r"\n\s*", "\n", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" class="chart" ', 1)
