"""How long work shows on a terminal, and in a file."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from rich.console import Console

from hwprune.cli.progress import Lines, observing


def shown(work: Callable[[Lines], None], *, terminal: bool = True) -> list[str]:
    """The lines that stand on a terminal in the end, or in a file."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160, legacy_windows=False)
    with observing(console) as lines:
        work(lines)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "\n")
    return [line.rstrip() for line in plain.splitlines() if line.strip()]


def row(phase: str, epoch: int, **others: Any) -> dict[str, Any]:
    return {"phase": phase, "epoch": epoch, "loss": 0.25, "accuracy": 0.5, "seconds": 1.0, **others}


def dense_training(lines: Lines) -> None:
    lines.phase("dense", 4, 0)
    lines.batch(0.3)
    lines.batch(0.25)
    lines.epoch(row("dense", 1, groups_alive=96, predicted_us=120.0), {})
    lines.batch(0.2)


def test_the_bar_says_what_the_epoch_before_came_to() -> None:
    lines = shown(dense_training)
    assert "dense epoch 1: loss 0.2500, accuracy 50.00%, 96 groups alive, predicted 120 us, 1.0 s" in lines
    assert re.match(
        r"dense .* 3/4 loss 0\.200; after epoch 1: accuracy 50\.00%, 96 groups, 120 us ", lines[-1]
    )


def test_the_bar_of_another_training_says_nothing_of_the_one_before() -> None:
    def work(lines: Lines) -> None:
        dense_training(lines)
        lines.phase("prune", 6, 3)
        lines.batch(0.7)

    last = shown(work)[-1]
    assert re.match(r"prune .* 4/6 loss 0\.700 ", last)
    assert "accuracy" not in last
    assert "dense" not in last


def test_a_row_without_groups_or_a_prediction_leaves_them_out() -> None:
    def work(lines: Lines) -> None:
        lines.phase("dense", 2, 0)
        lines.epoch(row("dense", 1, groups_alive=96, predicted_us=None), {})
        lines.batch(0.2)

    assert re.search(r"after epoch 1: accuracy 50\.00%, 96 groups +\S+$", shown(work)[-1])


def test_a_file_gets_a_line_for_each_training_and_epoch() -> None:
    assert shown(dense_training, terminal=False) == [
        "training dense: 4 batches",
        "dense epoch 1: loss 0.2500, accuracy 50.00%, 96 groups alive, predicted 120 us, 1.0 s",
    ]


def test_tasks_stand_above_the_training() -> None:
    def work(lines: Lines) -> None:
        lines.tasks(1, 3)
        dense_training(lines)

    above, below = shown(work)[-2:]
    assert re.match(r"tasks .* 1/3 ", above)
    assert re.match(r"dense .* 3/4 ", below)
