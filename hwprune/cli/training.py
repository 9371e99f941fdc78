"""What the commands that train share: their options, what these ask for, and how an interruption ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any

import click

from hwprune.cli.common import SEED, telling_how_to_go_on
from hwprune.device.profile import DeviceProfile
from hwprune.granularities import SHRINKING, granularity_names
from hwprune.penalties import penalty_names
from hwprune.targets import Keep, LatencyUs, Speedup, Target
from hwprune.train.distillation import Distillation
from hwprune.train.loop import Recipe
from hwprune.variants import Grid

#: Epochs where none are asked for: the embedded default is small, everything else is not.
DEFAULT_EPOCHS, DIGITS_EPOCHS = 10, 16
DEFAULT_BATCH, DIGITS_BATCH = 128, 32
#: The fine-tuning of a network that starts from one at a looser target takes this share of the epochs: what
#: it starts from has learned to do with less already.
FURTHER_SHARE = 0.2
#: The learning rate of a fine-tuning, as a share of that of the dense training (of 0.1, 0.03 and 0.01 the
#: middle one kept most of a small network's accuracy).
FINE_TUNE_RATE = 0.3
#: Images that survivors are fitted on.
RECONSTRUCTION_IMAGES = 768
#: How much a network that starts from trained weights learns from the dense one.
TRAINED_DISTILLATION = 0.5
_OPTIONS = (
    click.option(
        "--speedup",
        "speedups",
        type=float,
        multiple=True,
        help="Target: so many times faster, measured. Default: 2.",
    ),
    click.option(
        "--latency-us",
        "latencies",
        type=float,
        multiple=True,
        help="Target: at most so many microseconds, measured.",
    ),
    click.option(
        "--keep",
        "fractions",
        type=float,
        multiple=True,
        help="Target: this fraction of the groups, rounded down.",
    ),
    click.option("--epochs", type=int, help=f"Default: {DEFAULT_EPOCHS}, for the digits {DIGITS_EPOCHS}."),
    click.option("--batch-size", type=int, help=f"Default: {DEFAULT_BATCH}, for the digits {DIGITS_BATCH}."),
    click.option(
        "--learning-rate",
        type=float,
        default=0.1,
        show_default=True,
        help=f"At its peak. Training that starts from trained weights peaks at {FINE_TUNE_RATE:.0%} of it.",
    ),
    click.option("--train-images", type=int, help="Train on the first so many images only."),
    click.option("--seed", type=SEED, default=0, show_default=True),
    click.option("--penalty", type=click.Choice(penalty_names()), default="envelope", show_default=True),
    click.option(
        "--granularity",
        type=click.Choice(granularity_names()),
        help="What a group is; by default what the rules of the device say, mostly channel. Channels and "
        "residual branches leave the network, kernel positions (shape) its convolutions; weights and blocks "
        "become zeros.",
    ),
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        help="Trained weights of the dense network (safetensors, or a state_dict that torch.save wrote): it "
        "is not trained, and pruning starts from them.",
    ),
    click.option(
        "--fine-tune-epochs",
        type=int,
        help="Epochs of each pruned network. Default: --epochs from the dense network's trained weights on, "
        f"and {FURTHER_SHARE:.0%} of them from those of a network at a looser target.",
    ),
    click.option(
        "--distill",
        type=float,
        help="Learn from the dense network too, with this weight (0 to 1; 0: not). Default: "
        f"{TRAINED_DISTILLATION} where pruning starts from trained weights, else 0.",
    ),
    click.option(
        "--temperature",
        type=float,
        help=f"Of the distillation; above 1 is softer [default: {Distillation(1.0).temperature:g}].",
    ),
    click.option(
        "--reconstruct",
        type=click.IntRange(min=0),
        metavar="IMAGES",
        help="Where pruning starts from trained weights: on so many training images choose the channels that "
        "stay, by what the layers behind them would lose, and fit these, layer by layer, to what the network "
        f"computed before. 0: choose by norm, fit nothing. Default: {RECONSTRUCTION_IMAGES} there.",
    ),
    click.option(
        "--from-scratch",
        is_flag=True,
        help="Start from random weights, not from the dense network: the penalty pulls, for --epochs.",
    ),
)


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what is trained, how and to which targets, as one :class:`Training`."""

    @wraps(command)
    def run(**options: Any) -> Any:
        own = {field.name: options.pop(field.name) for field in fields(Training)}
        return command(training=Training(**own), **options)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


@dataclass(frozen=True, slots=True)
class Training:
    """What the user asked for with :func:`training_options`; ``None`` for what was not said."""

    speedups: Sequence[float]
    latencies: Sequence[float]
    fractions: Sequence[float]
    epochs: int | None
    batch_size: int | None
    learning_rate: float
    train_images: int | None
    seed: int
    penalty: str
    granularity: str | None
    weights: Path | None
    fine_tune_epochs: int | None
    from_scratch: bool
    distill: float | None
    temperature: float | None
    reconstruct: int | None

    def __post_init__(self) -> None:
        if self.from_scratch and (self.weights is not None or self.fine_tune_epochs is not None):
            raise click.UsageError("--from-scratch contradicts --weights and --fine-tune-epochs")

    def targets(self) -> list[Target]:
        """All of them; twice as fast where there is none."""
        return [
            *map(Speedup, self.speedups),
            *map(LatencyUs, self.latencies),
            *map(Keep, self.fractions),
        ] or [Speedup(2.0)]

    def recipe(self, data: str) -> Recipe:
        """How to train, with the defaults that suit the data set.

        Raises:
            InputError: If a number is out of range.
        """
        small = data == "digits"
        epochs = self.epochs if self.epochs is not None else (DIGITS_EPOCHS if small else DEFAULT_EPOCHS)
        batch_size = self.batch_size
        if batch_size is None:
            batch_size = DIGITS_BATCH if small else DEFAULT_BATCH
        return Recipe(epochs, batch_size, self.learning_rate, seed=self.seed)

    def fine_tune(self, recipe: Recipe, share: float = 1.0) -> Recipe | None:
        """How to train from trained weights; ``None`` for a start from scratch.

        Args:
            recipe: Of the dense training.
            share: Of its epochs, where nothing else is asked for.
        """
        if self.from_scratch:
            return None
        epochs = self.fine_tune_epochs
        if epochs is None:
            epochs = max(1, round(share * recipe.epochs))
        return replace(recipe, epochs=epochs, learning_rate=FINE_TUNE_RATE * recipe.learning_rate)

    def distillation(self, fine_tune: Recipe | None) -> Distillation | None:
        """How to learn from the dense network; ``None`` for not at all.

        Args:
            fine_tune: From :meth:`fine_tune`.

        Raises:
            InputError: If a number is out of range.
        """
        weight = self.distill
        if weight is None:
            weight = 0.0 if fine_tune is None else TRAINED_DISTILLATION
        if weight:
            return (
                Distillation(weight) if self.temperature is None else Distillation(weight, self.temperature)
            )
        if self.temperature is not None:
            raise click.UsageError(
                "--temperature is of what is learned from the dense network, and nothing is: give --distill, "
                "or leave it out"
            )
        return None

    def reconstruction(self, fine_tune: Recipe | None, granularity: str | None) -> int:
        """On how many images survivors are fitted; 0 for not at all.

        Args:
            fine_tune: From :meth:`fine_tune`.
            granularity: What a group is; ``None`` where that depends on the device.

        Raises:
            click.UsageError: If survivors are to be fitted where there is nothing to fit them to.
        """
        images = self.reconstruct
        if fine_tune is None:
            if images:
                raise click.UsageError(
                    "--reconstruct fits networks to what they computed before pruning, but this one starts "
                    "from random weights: leave out --from-scratch, or this"
                )
            return 0
        if granularity is not None and granularity not in SHRINKING:
            if images:
                raise click.UsageError(
                    f"--reconstruct fits networks that get smaller, with granularity {', '.join(SHRINKING)}: "
                    f"leave it out with {granularity}"
                )
            return 0
        return RECONSTRUCTION_IMAGES if images is None else images

    def grid(self, models: Sequence[str], data: str, devices: Mapping[str, DeviceProfile]) -> Grid:
        """Every model for every device at every target."""
        recipe = self.recipe(data)
        fine_tune = self.fine_tune(recipe)
        return Grid(
            models,
            data,
            devices,
            self.targets(),
            recipe,
            self.penalty,
            self.train_images,
            self.granularity,
            None if self.weights is None else str(self.weights),
            fine_tune,
            self.distillation(fine_tune),
            self.reconstruction(fine_tune, self.granularity),
            further=self.fine_tune(recipe, FURTHER_SHARE),
        )


def telling_how_to_resume() -> AbstractContextManager[None]:
    """Ends an interrupted command with the command that goes on with it."""
    return telling_how_to_go_on(without="--resume", with_=("--resume",))
