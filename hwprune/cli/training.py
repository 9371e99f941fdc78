"""What the commands that train share: their options, the recipe these make, and how an interruption ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from hwprune.cli.common import INTERRUPTED
from hwprune.penalties import penalty_names
from hwprune.train.loop import Recipe

#: Epochs where none are asked for: the embedded default is small, everything else is not.
DEFAULT_EPOCHS, DIGITS_EPOCHS = 10, 16
DEFAULT_BATCH, DIGITS_BATCH = 128, 32
_OPTIONS = (
    click.option("--epochs", type=int, help=f"Default: {DEFAULT_EPOCHS}, for the digits {DIGITS_EPOCHS}."),
    click.option("--batch-size", type=int, help=f"Default: {DEFAULT_BATCH}, for the digits {DIGITS_BATCH}."),
    click.option("--learning-rate", type=float, default=0.1, show_default=True, help="At its peak."),
    click.option("--train-images", type=int, help="Train on the first so many images only."),
    click.option("--seed", type=int, default=0, show_default=True),
    click.option("--penalty", type=click.Choice(penalty_names()), default="envelope", show_default=True),
)


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how networks are trained."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_recipe(
    data: str, epochs: int | None, batch_size: int | None, learning_rate: float, seed: int
) -> Recipe:
    """The recipe of the options, with the defaults that suit the data set.

    Raises:
        InputError: If a number is out of range.
    """
    small = data == "digits"
    return Recipe(
        epochs=epochs if epochs is not None else (DIGITS_EPOCHS if small else DEFAULT_EPOCHS),
        batch_size=batch_size if batch_size is not None else (DIGITS_BATCH if small else DEFAULT_BATCH),
        learning_rate=learning_rate,
        seed=seed,
    )


@contextmanager
def telling_how_to_resume() -> Iterator[None]:
    """Ends an interrupted command with the command that goes on with it."""
    try:
        yield
    except KeyboardInterrupt:
        again = " ".join(argument for argument in sys.argv[1:] if argument != "--resume")
        click.echo(f"Interrupted. Go on with: hwprune {again} --resume", err=True)
        sys.exit(INTERRUPTED)
