"""Draws the staircases of what has weights in a measured profile, and its predictions against measurements.

python tools/draw_profile.py x86-avx2-ort docs/predictions.md docs/staircases.svg
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path

import click

from hwprune.device.library import load_profile
from hwprune.device.predict import table_of
from hwprune.files import write_text
from hwprune.operators import MATRIX_KINDS
from hwprune.profile_check import NetworkError
from hwprune.profile_pictures import agreement, staircases

#: Pictures in a row, and the size of each and of its title, in points.
COLUMNS, WIDTH, HEIGHT, TITLE = 2, 375, 238, 22
#: A row of the page's table of errors, and every pair of predicted and measured microseconds in it.
ROW = re.compile(r"^\| ([\w.-]+ \([\dx]+\)) \| (.*) \|$", re.MULTILINE)
PAIR = re.compile(r"([\d.]+) / ([\d.]+) \([-+][\d.]+ %\)")


def printed_errors(page: str) -> list[NetworkError]:
    """The pairs that a page prints, by the network that they are of."""
    return [
        NetworkError(row[1], float(predicted), float(measured), 0.0)
        for row in ROW.finditer(page)
        for predicted, measured in PAIR.findall(row[2])
    ]


def side_by_side(pictures: Mapping[str, str]) -> str:
    """One drawing of several, each under its title."""
    parts = []
    for place, (title, drawing) in enumerate(pictures.items()):
        row, column = divmod(place, COLUMNS)
        x, y = column * WIDTH, row * (HEIGHT + TITLE)
        told = (
            f'<text x="{x + WIDTH / 2}" y="{y + TITLE - 6}" text-anchor="middle">{html.escape(title)}</text>'
        )
        parts += [told, _placed(drawing, x, y + TITLE)]
    height = -(-len(pictures) // COLUMNS) * (HEIGHT + TITLE)
    size = f'width="{COLUMNS * WIDTH}pt" height="{height}pt" viewBox="0 0 {COLUMNS * WIDTH} {height}"'
    style = 'font-family="sans-serif" font-size="13" style="background: white; color: black"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{"".join(parts)}</svg>\n'


def _placed(drawing: str, x: int, y: int) -> str:
    """A drawing inside of another one, in whose units its size is."""
    sized = re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"', f'width="{WIDTH}" height="{HEIGHT}"', drawing, count=1
    )
    return sized.replace("<svg ", f'<svg x="{x}" y="{y}" ', 1)


@click.command()
@click.argument("profile")
@click.argument("page", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
def main(profile: str, page: Path, target: Path) -> None:
    """Draws PROFILE and the errors that PAGE prints into TARGET, an SVG file."""
    rows = table_of(load_profile(profile)).rows
    pictures = staircases(row for row in rows if row.operator.kind in MATRIX_KINDS)
    errors = printed_errors(page.read_text(encoding="utf-8"))
    write_text(target, side_by_side({**pictures, "predicted against measured": agreement(errors)}))


if __name__ == "__main__":
    main()
