"""Draws the envelope, its exact form and their proximal operators in one and two dimensions.

python tools/draw_envelope.py docs/envelope.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import matplotlib
import numpy as np
import torch

from hwprune.penalties import GroupEnvelope

#: Okabe and Ito's palette, told apart with every kind of colour vision; line styles differ as well.
PLAIN, EXACT, NEUTRAL = "#0072B2", "#D55E00", "#595959"
STRENGTH = 0.2
#: The other two norms of the one-dimensional pictures: two groups of three may stay.
OTHERS = (1.0, 0.5)
BUDGET_1D, BUDGET_2D = 2, 1
TOP = 2.0


def envelopes(budget: int) -> list[tuple[str, str, str, GroupEnvelope]]:
    """Name, colour, line style and penalty of both forms."""
    return [
        ("plain, $S$", PLAIN, "--", GroupEnvelope(budget, debias=False)),
        ("exact, $G$", EXACT, "-", GroupEnvelope(budget, debias=True)),
    ]


def rows_1d(steps: int = 801) -> torch.Tensor:
    """Norms of three groups, shape ``(steps, 3)``: the first one varies."""
    first = torch.linspace(0, TOP, steps, dtype=torch.float64)
    others = torch.tensor(OTHERS, dtype=torch.float64).expand(steps, 2)
    return torch.cat([first[:, None], others], dim=1)


def draw_value_1d(axes: Any) -> None:
    """The value along the norm of one of three groups."""
    rows = rows_1d()
    for name, colour, style, envelope in envelopes(BUDGET_1D):
        axes.plot(rows[:, 0], envelope.value(rows), style, color=colour, lw=2, label=name)
    quadratic = rows.square().sum(-1) / 2
    axes.plot(rows[:, 0], quadratic, ":", color=NEUTRAL, lw=1.5, label=r"$\frac{1}{2}\Sigma_j\, t_j^2$")
    axes.set(xlabel="$t_1$", ylabel="value", xlim=(0, TOP), ylim=(0, None))
    axes.set_title(f"Value, $t_2={OTHERS[0]:g}$, $t_3={OTHERS[1]:g}$, budget {BUDGET_1D}")
    axes.legend(frameon=False)


def draw_prox_1d(axes: Any) -> None:
    """What the proximal operator makes of one of three groups."""
    rows = rows_1d()
    axes.plot([0, TOP], [0, TOP], ":", color=NEUTRAL, lw=1.5, label="unchanged")
    for name, colour, style, envelope in envelopes(BUDGET_1D):
        shrunk = envelope.prox_factors(rows, STRENGTH)[:, 0] * rows[:, 0]
        axes.plot(rows[:, 0], shrunk, style, color=colour, lw=2, label=name)
    axes.set(xlabel="$t_1$ before", ylabel="$t_1$ after", xlim=(0, TOP), ylim=(0, TOP))
    axes.set_title(f"Proximal operator, strength {STRENGTH:g}")
    axes.legend(frameon=False)


def draw_contours(axes: Any, name: str, envelope: GroupEnvelope, colours: str) -> None:
    """Level lines of the value of two groups."""
    line = torch.linspace(0, TOP, 201, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    levels = np.array([0.0, 0.05, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0])
    value = envelope.value(grid)
    axes.contourf(line, line, value, levels=levels, cmap=colours, alpha=0.85)
    lines = axes.contour(line, line, value, levels=levels[1:-1], colors="black", linewidths=0.7)
    axes.clabel(lines, fontsize=8, fmt="%g")
    axes.set(xlabel="$t_1$", ylabel="$t_2$", aspect="equal")
    axes.set_title(f"Value, {name}, budget {BUDGET_2D}")


def draw_field(axes: Any, name: str, envelope: GroupEnvelope, colour: str) -> None:
    """Where one proximal step moves two groups."""
    line = torch.linspace(0.0, TOP, 9, dtype=torch.float64)
    before = torch.cartesian_prod(line, line)
    after = envelope.prox_factors(before, STRENGTH) * before
    moved = (after - before).norm(dim=-1) > 1e-9
    start, move = before[moved], (after - before)[moved]
    arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.006, "headwidth": 4}
    axes.quiver(*start.T, *move.T, color=colour, **arrows)
    still = before[~moved]
    axes.plot(*still.T, "o", color=NEUTRAL, ms=4, label="stays", clip_on=False)
    axes.set(
        xlabel="$t_1$", ylabel="$t_2$", aspect="equal", xlim=(-0.05, TOP + 0.05), ylim=(-0.05, TOP + 0.05)
    )
    axes.set_title(f"One proximal step, {name}")


def draw() -> Any:
    """The whole picture."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(2, 3, figsize=(13, 8), layout="constrained")
    draw_value_1d(places[0, 0])
    draw_prox_1d(places[1, 0])
    for column, (name, colour, _, envelope) in enumerate(envelopes(BUDGET_2D), start=1):
        draw_contours(places[0, column], name, envelope, "Blues" if column == 1 else "Oranges")
        draw_field(places[1, column], name, envelope, colour)
    places[1, 2].legend(loc="upper right", framealpha=1)
    for place in places.flat:
        place.set_xticks(np.linspace(0, TOP, 5))
        if place is not places[0, 0]:
            place.set_yticks(np.linspace(0, TOP, 5))
    return figure


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
def main(target: Path) -> None:
    """Writes the picture to TARGET; the ending says as what."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draw().savefig(target, dpi=100)


if __name__ == "__main__":
    main()
