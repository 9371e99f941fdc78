"""The whole job, one line per arrow: see :func:`compress`.

profile -> graph -> groups -> costs -> proximal training -> survivors -> slim model -> exported file ->
measured latency -> report
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hwprune.compressor import Compressor
from hwprune.device.profile import DeviceProfile
from hwprune.errors import VerificationError
from hwprune.graph.trace import trace_operators
from hwprune.operators import Operator, multiply_accumulates
from hwprune.output_folder import OutputFolder
from hwprune.report import RunReport, write_report
from hwprune.runtime.base import get_runtime
from hwprune.runtime.environment import versions
from hwprune.runtime.export import export
from hwprune.runtime.timing import Timing, measure_alternately
from hwprune.surgery.artifact import save_slim
from hwprune.surgery.verify import compare, outputs_of
from hwprune.targets import Target, describe
from hwprune.train.checkpoint import load_checkpoint, save_checkpoint
from hwprune.train.loop import EpochStats, Recipe, Trainer
from hwprune.workloads import Dataset, accuracy, batches_per_epoch, load_dataset, make_model

#: Largest difference allowed between the exported slim network and the masked one, as a fraction of the
#: largest output: another runtime sums in another order.
RUNTIME_TOLERANCE = 1e-4
#: Test images that slim and masked are compared on.
VERIFICATION_IMAGES = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """What one run of ``prune`` is asked to do.

    Attributes:
        model: Built-in name or ``package.module:callable``.
        data: Built-in name or ``package.module:callable``.
        device: Name or folder of the profile.
        target: What to reach.
        recipe: How to train, dense and pruned alike.
        penalty: Which penalty drives the groups.
        train_images: Use only the first so many training images; ``None`` for all.
        granularity: What a group is.
    """

    model: str
    data: str
    device: str
    target: Target
    recipe: Recipe
    penalty: str = "envelope"
    train_images: int | None = None
    granularity: str = "channel"

    def as_record(self) -> dict[str, Any]:
        """The settings as JSON; equal records mean equal runs."""
        return {**asdict(self), "target": describe(self.target)}


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

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done; the row of the history."""
        ...


def compress(
    settings: Settings,
    profile: DeviceProfile,
    out: Path,
    observer: Observer,
    *,
    resume: bool,
    dense_checkpoint: Path | None = None,
) -> RunReport:
    """Trains dense and pruned, rebuilds, verifies, exports, measures and reports.

    Args:
        settings: What to do.
        profile: The device.
        out: The output folder; see :class:`~hwprune.output_folder.OutputFolder`.
        observer: Told how it goes.
        resume: Go on from the folder's checkpoints.
        dense_checkpoint: Where runs with the same model, data and recipe share the dense training: read
            where it exists, written where it does not.

    Returns:
        The report, as written to ``report.json``.

    Raises:
        HwpruneError: For every error of the input or the run; the folder then holds checkpoints at most.
    """
    started = time.perf_counter()
    OutputFolder.check(out, resume=resume)
    dataset = load_dataset(settings.data).first(settings.train_images)
    initial = _new_model(settings, dataset)
    examples = dataset.test_images[:2]
    pruned = _new_model(settings, dataset)
    compressor = Compressor(
        pruned,
        examples,
        profile,
        settings.target,
        total_steps=settings.recipe.epochs * batches_per_epoch(dataset, settings.recipe.batch_size),
        granularity=settings.granularity,
        penalty=settings.penalty,
        notify=observer.note,
    )
    folder = OutputFolder.open(out, settings.as_record(), resume=resume)
    history: list[dict[str, Any]] = []
    trainer = Trainer(initial, dataset, settings.recipe)
    shared = _load_shared(dense_checkpoint, folder, lambda: _dense_columns(compressor))
    _train("dense", trainer, folder, observer, history, lambda: _dense_columns(compressor))
    if dense_checkpoint is not None and not shared:
        save_checkpoint(dense_checkpoint, folder.load_checkpoint("dense"))
    pruning = Trainer(pruned, dataset, settings.recipe, compressor.wrap)
    _train("prune", pruning, folder, observer, history, lambda: _pruned_columns(compressor))
    observer.note("rebuilding the slim network and comparing it with the masked one")
    result = compressor.finish([dataset.test_images[:VERIFICATION_IMAGES]])
    with tempfile.TemporaryDirectory(prefix="hwprune-") as staging:
        paths = {name: Path(staging) / f"{name}.onnx" for name in ("dense", "slim")}
        export(initial, paths["dense"], examples)
        export(result.model, paths["slim"], examples)
        gap = verify_exported(
            pruned, paths["slim"], dataset.test_images[:VERIFICATION_IMAGES], compressor.profile
        )
        observer.note("timing dense and slim alternately")
        timings = measure_alternately(paths, compressor.profile)
        networks = {"dense": initial, "slim": result.model}
        report = RunReport(
            settings=settings.as_record(),
            seconds=time.perf_counter() - started,
            versions=versions(),
            environment=dict(timings["slim"].environment),
            networks={
                name: describe_network(networks[name], paths[name], timings[name], dataset)
                for name in networks
            },
            result=result,
            runtime_gap=gap,
            image_shape=dataset.image_shape,
            history=history,
        )
        folder.write_result(
            paths["slim"],
            lambda path: save_slim(path, result.model, result.axes, result.kept, versions()),
        )
    write_report(folder.path, report)
    folder.remove_checkpoints()
    return report


def _load_shared(path: Path | None, folder: OutputFolder, columns: Callable[[], dict[str, Any]]) -> bool:
    """Takes a shared dense training for the folder's own; says whether there was one."""
    if path is None or not path.is_file():
        return False
    state = load_checkpoint(path)
    # What is predicted for the dense network depends on the device.
    history = [{**row, **columns()} for row in state["history"]]
    folder.save_checkpoint("dense", {**state, "history": history})
    return True


def _new_model(settings: Settings, dataset: Dataset) -> nn.Module:
    return make_model(
        settings.model,
        in_channels=dataset.image_shape[0],
        image_size=dataset.image_shape[1],
        classes=dataset.classes,
        seed=settings.recipe.seed,
    )


def _train(
    phase: str,
    trainer: Trainer,
    folder: OutputFolder,
    observer: Observer,
    history: list[dict[str, Any]],
    columns: Callable[[], dict[str, Any]],
) -> None:
    """Runs the epochs that are left, with a checkpoint after each."""
    saved = folder.load_checkpoint(phase)
    if saved is not None:
        trainer.load_state_dict(saved["trainer"])
        history += saved["history"]
    per_epoch = trainer.total_steps // trainer.recipe.epochs
    observer.phase(phase, trainer.total_steps, trainer.epoch * per_epoch)
    rows: list[dict[str, Any]] = list(saved["history"]) if saved is not None else []
    while not trainer.done:
        rate = float(trainer.scheduler.get_last_lr()[0])
        stats = trainer.run_epoch(observer.batch)
        row = _history_row(phase, stats, rate, columns())
        rows.append(row)
        history.append(row)
        folder.save_checkpoint(phase, {"trainer": trainer.state_dict(), "history": rows})
        observer.epoch(row)


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


def _dense_columns(compressor: Compressor) -> dict[str, Any]:
    return {
        "groups_alive": compressor.groups.group_count,
        "predicted_us": round(compressor.dense_predicted_us, 3),
        "strength": 0.0,
    }


def _pruned_columns(compressor: Compressor) -> dict[str, Any]:
    proximal = compressor.proximal
    return {
        "groups_alive": proximal.groups_alive,
        "predicted_us": round(compressor.predicted_us, 3),
        "strength": 0.0 if proximal.settled else round(proximal.schedule.strength(proximal.step), 6),
    }


def verify_exported(masked: nn.Module, path: Path, images: torch.Tensor, profile: DeviceProfile) -> float:
    """Largest absolute difference between an exported slim network and the masked one.

    Args:
        masked: The full-width network.
        path: The exported slim network.
        images: Inputs to compare on.
        profile: Names the runtime.

    Raises:
        VerificationError: If they differ by more than :data:`RUNTIME_TOLERANCE`.
    """
    session = get_runtime(profile.runtime.kind).open(path, profile.runtime)
    (item,) = session.inputs
    # A file with a fixed batch size is fed as many images as it takes.
    batch = item.shape[0] or len(images)
    images = images[:batch]
    modes = {module: module.training for module in masked.modules()}
    masked.eval()
    expected = outputs_of(masked, images)
    for module, training in modes.items():
        module.training = training
    actual = [torch.from_numpy(array) for array in session.run({item.name: images.numpy()})]
    difference = compare(expected, actual)
    if difference.relative > RUNTIME_TOLERANCE:
        raise VerificationError(
            "the exported network does not compute what the masked one computes",
            where=f"runtime {profile.runtime.kind}",
            expected=f"a difference of at most {RUNTIME_TOLERANCE:g} of the largest output",
            got=f"{difference.absolute:.3g} at a largest output of {difference.scale:.3g}",
            hint="nothing was written; report the network to the project",
        )
    return difference.absolute


def describe_network(model: nn.Module, path: Path, timing: Timing, dataset: Dataset) -> dict[str, Any]:
    """Accuracy, latency and size of one network, as the report carries them."""
    operators: tuple[Operator, ...] = trace_operators(model, dataset.test_images[:1])
    return {
        "accuracy": accuracy(model, dataset.test_images, dataset.test_labels),
        "latency_us": timing.summary(),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "macs": sum(multiply_accumulates(operator) for operator in operators),
        "file_bytes": path.stat().st_size,
    }
