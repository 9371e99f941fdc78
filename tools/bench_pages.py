"""What the benchmarks' pages have in common: who was measured when, and medians with percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch

from hwprune.runtime.environment import environment


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile.

    >>> percentiles([1.0, 2.0, 3.0])
    (2.0, 1.2, 2.8)
    """
    median, low, high = (round(float(value), 12) for value in np.percentile(values, [50, 10, 90]))
    return median, low, high


def verdict(what: str, measured: float | None, most: float) -> str:
    """A line that says whether a wanted figure is met, of what was measured, ``None`` where it was not.

    >>> verdict("warm / SGD", 4.567, 4)
    '- warm / SGD: 4.57, at most 4 wanted: missed'
    """
    if measured is None:
        return f"- {what}: not measured, at most {most:g} wanted"
    return f"- {what}: {measured:.3g}, at most {most:g} wanted: {'met' if measured <= most else 'missed'}"


def machine_line(device: str = "cpu") -> str:
    """Machine, versions and date in one line."""
    facts = environment()
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} thread(s)"
    return (
        f"{facts['cpu']} ({facts['isa']}, {facts['cores']} cores), {where}, {facts['os']}, "
        f"Python {facts['python']}, torch {facts['torch']}, numpy {facts['numpy']}, {facts['date']}."
    )


def write_page(lines: Sequence[str], target: Path | None) -> None:
    """Writes the page to ``target``, or shows it where there is none."""
    text = "\n".join(lines) + "\n"
    if target is None:
        click.echo(text, nl=False)
    else:
        target.write_text(text, encoding="utf-8")
