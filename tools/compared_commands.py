"""What comparisons of whole commands have in common: their options, and the words of the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click


def options(
    *, work: str, device: str, images: int, speedups: Sequence[float]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the options of a comparison to a command, with its defaults.

    Args:
        work: Folder of the runs.
        device: Profile.
        images: Training images.
        speedups: Targets.
    """

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(
            [
                click.option(
                    "--out", type=click.Path(path_type=Path), help="Where the page goes; shown by default."
                ),
                click.option(
                    "--work", type=click.Path(path_type=Path), default=Path(work), show_default=True
                ),
                click.option("--model", default="resnet20", show_default=True),
                click.option("--data", default="fashion-mnist", show_default=True),
                click.option("--device", default=device, show_default=True),
                click.option("--images", default=images, show_default=True, help="Training images."),
                click.option("--epochs", default=5, show_default=True),
                click.option("--batch-size", default=64, show_default=True),
                click.option("--seeds", default=3, show_default=True),
                click.option(
                    "--speedup",
                    "speedups",
                    type=float,
                    multiple=True,
                    default=tuple(speedups),
                    show_default=True,
                ),
            ]
        ):
            command = option(command)
        return command

    return add


def words(asked: dict[str, Any]) -> list[str]:
    """The options as ``hwprune prune`` takes them, without targets and seed.

    Args:
        asked: ``model``, ``data``, ``device``, ``epochs``, ``images`` and ``batch_size``.
    """
    named = {"train-images": asked["images"], "batch-size": asked["batch_size"]}
    named = {**{name: asked[name] for name in ("model", "data", "device", "epochs")}, **named}
    return [word for name, value in named.items() for word in (f"--{name}", str(value))]


def targets(speedups: Sequence[float]) -> list[str]:
    """The targets likewise."""
    return [word for speedup in speedups for word in ("--speedup", f"{speedup:g}")]
