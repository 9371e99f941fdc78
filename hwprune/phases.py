"""The epochs of a run, one training after the other: checkpoints, the history, and who is told."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from hwprune.compressor import Compressor
from hwprune.errors import ArtifactError
from hwprune.output_folder import OutputFolder
from hwprune.processes import from_first, on_first
from hwprune.train.loop import EpochStats, Trainer


class Observer(Protocol):
    """Who wants to know how it goes."""

    def note(self, line: str) -> None:
        """Something the user should know."""
        ...

    def phase(self, name: str, batches: int, done: int) -> None:
        """A training of so many batches begins, ``done`` of them behind it."""
        ...

    def batch(self, loss: float) -> None:
        """A batch is done."""
        ...

    def epoch(self, row: dict[str, Any], alive: Mapping[str, int]) -> None:
        """An epoch is done; the row of the history, and the living members of every layer."""
        ...


def phase_line(name: str, batches: int, done: int) -> str:
    """The begin of a training in words."""
    return f"training {name}: {batches} batches" + (f", {done} of them done" if done else "")


def epoch_line(row: Mapping[str, Any]) -> str:
    """A row of the history in words."""
    parts = [f"loss {row['loss']:.4f}", f"accuracy {row['accuracy']:.2%}"]
    if "groups_alive" in row:  # a dense training that variants share is for no device yet
        parts.append(f"{row['groups_alive']} groups alive")
        if row["predicted_us"] is not None:
            parts.append(f"predicted {row['predicted_us']:.0f} us")
    return f"{row['phase']} epoch {row['epoch']}: {', '.join(parts)}, {row['seconds']:.1f} s"


def run_phase(
    phase: str, trainer: Trainer, folder: OutputFolder, observer: Observer, compressor: Compressor | None
) -> list[dict[str, Any]]:
    """Runs the epochs that are left, with a checkpoint after each.

    Args:
        phase: ``dense`` or ``prune``.
        trainer: Trains the network of that phase.
        folder: Where the checkpoints are.
        observer: Told how it goes.
        compressor: What the rows of the history tell of; ``None`` where the network is for no device yet.

    Returns:
        The phase's rows of the history, those of the epochs before an interruption included.

    Raises:
        ArtifactError: If the checkpoint is not one of this training.
    """
    columns = dense_columns if phase == "dense" else _pruned_columns
    saved = from_first(lambda: folder.load_checkpoint(phase, observer.note))
    if saved is not None:
        _go_on(trainer, saved["trainer"], folder)
    per_epoch = trainer.total_steps // trainer.recipe.epochs
    observer.phase(phase, trainer.total_steps, trainer.epoch * per_epoch)
    rows: list[dict[str, Any]] = list(saved["history"]) if saved is not None else []
    while not trainer.done:
        rate = float(trainer.scheduler.get_last_lr()[0])
        stats = trainer.run_epoch(observer.batch)
        row = _history_row(phase, stats, rate, {} if compressor is None else columns(compressor))
        rows.append(row)
        state = {"trainer": trainer.state_dict(), "history": rows}
        on_first(partial(folder.save_checkpoint, phase, state))
        observer.epoch(row, {} if compressor is None else compressor.members_alive)
    return rows


def _go_on(trainer: Trainer, state: Mapping[str, Any], folder: OutputFolder) -> None:
    """Takes back the state of a training; a network whose code has changed since does not fit it."""
    try:
        trainer.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            "the checkpoint does not fit the network",
            where=folder.path,
            expected="the network that it was written for",
            got=str(error).strip().splitlines()[0],
            hint="start again without --resume",
        ) from error


def _history_row(phase: str, stats: EpochStats, rate: float, columns: dict[str, Any]) -> dict[str, Any]:
    return {
        "phase": phase,
        "epoch": stats.epoch,
        "loss": round(stats.loss, 6),
        "accuracy": round(stats.accuracy, 6),
        **columns,
        "learning_rate": round(rate, 8),
        "seconds": round(stats.seconds, 3),
    }


def for_device(row: Mapping[str, Any], compressor: Compressor) -> dict[str, Any]:
    """A row of a dense training that was made for no device or another one, as one for the compressor's."""
    columns = dense_columns(compressor)
    first = {key: row[key] for key in ("phase", "epoch", "loss", "accuracy")}
    return {**first, **columns, **{key: value for key, value in row.items() if key not in columns}}


def dense_columns(compressor: Compressor) -> dict[str, Any]:
    """What a row of the history tells of a dense network."""
    return {
        "groups_alive": compressor.groups.group_count,
        "predicted_us": _rounded(compressor.dense_predicted_us),
        "strength": 0.0,
    }


def _pruned_columns(compressor: Compressor) -> dict[str, Any]:
    proximal = compressor.proximal
    return {
        "groups_alive": proximal.groups_alive,
        "predicted_us": _rounded(compressor.predicted_us),
        "strength": 0.0 if proximal.settled else round(proximal.schedule.strength(proximal.step), 6),
    }


def _rounded(predicted_us: float | None) -> float | None:
    """As the history has it; ``None`` where nothing is predicted."""
    return None if predicted_us is None else round(predicted_us, 3)
