"""The whole job, one line per arrow: see :func:`compress`.

profile -> graph -> groups -> costs -> proximal training -> survivors -> slim model -> exported file ->
measured latency -> report
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwprune.closed_loop import Turn, forget_disturbed
from hwprune.compressor import SHRINKING, Compressor, Result
from hwprune.delivery import as_deployed, describe_network, verify_exported
from hwprune.device.profile import DeviceProfile
from hwprune.files import sha256_of
from hwprune.folder_lock import alone_in
from hwprune.graph.twin import copy_of
from hwprune.output_folder import OutputFolder, is_marked, nothing_to_resume
from hwprune.phases import Observer, for_device, run_phase
from hwprune.processes import from_first, in_all, on_first
from hwprune.report import RunReport, write_report
from hwprune.runtime.bench import THIS_MACHINE, Bench
from hwprune.runtime.environment import versions
from hwprune.runtime.export import export
from hwprune.runtime.timing import Timing
from hwprune.shared_files import load_shared, save_shared, shared_answers
from hwprune.surgery.artifact import check_state
from hwprune.targets import LatencyUs, Speedup, Target, describe
from hwprune.train.distillation import Distillation
from hwprune.train.loop import Recipe, Teacher, Trainer, rehearse
from hwprune.train.schedule import StrengthSchedule, needs_pull
from hwprune.workloads import (
    Dataset,
    batches_per_epoch,
    check_outputs,
    load_dataset,
    load_weights,
    make_model,
    spread,
)

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
        recipe: How to train the dense network, and the pruned one where it starts from scratch.
        penalty: Which penalty drives the groups.
        train_images: Use only the first so many training images; ``None`` for all.
        granularity: What a group is.
        weights: File of trained weights for the dense network, which is then not trained.
        fine_tune: How the pruned network is trained where it starts from trained weights; ``None`` for a
            start from scratch.
        follows: The target of the run whose pruned network this one starts from; ``None`` for the dense
            network's.
        distillation: How the pruned network learns from the dense one; ``None`` for not at all.
        reconstruct: Training images on which the survivors of a trained network are fitted to what it
            computed before; 0 for none.
        profiles: The folder that profiles were looked for in first, as the user named it.
    """

    model: str
    data: str
    device: str
    target: Target
    recipe: Recipe
    penalty: str = "envelope"
    train_images: int | None = None
    granularity: str = "channel"
    weights: str | None = None
    fine_tune: Recipe | None = None
    follows: Target | None = None
    distillation: Distillation | None = None
    reconstruct: int = 0
    profiles: str | None = None

    @property
    def pruning_recipe(self) -> Recipe:
        """How the pruned network is trained."""
        return self.fine_tune or self.recipe

    def as_record(self) -> dict[str, Any]:
        """The settings as JSON, as the report has them."""
        follows = None if self.follows is None else describe(self.follows)
        return {**asdict(self), "target": describe(self.target), "follows": follows}

    def run_record(self, profile: DeviceProfile) -> dict[str, Any]:
        """The settings, and what tells files apart that go by the same names.

        Args:
            profile: The device as it was loaded, before anything is measured here.
        """
        rules = profile.model_dump(mode="json", include={"rule", "runtime", "hardware"})
        told = hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
        files = {"profile_sha256": told}
        if self.weights is not None:
            files["weights_sha256"] = sha256_of(Path(self.weights))
        record = self.as_record()
        del record["profiles"]  # the profile itself counts, not where it lies
        return {**record, **files}

    def dense_record(self) -> dict[str, Any]:
        """What of the settings the dense training depends on."""
        record = self.as_record()
        return {key: record[key] for key in ("model", "data", "train_images", "recipe")}

    def masked_record(self, target: Target) -> dict[str, Any]:
        """What the pruned network at a target depends on, but for the one that it starts from."""
        record = {**self.as_record(), "target": describe(target)}
        del record["follows"], record["profiles"]  # where the device was read from is no part of it
        return record


@dataclass(frozen=True, slots=True)
class Shared:
    """Files that runs hand to each other.

    Attributes:
        dense: The dense training of runs with the same model, data and recipe: read where it exists, written
            where it does not.
        start: Masked weights of a run at a looser target, which this one starts from.
        masked: Where this run leaves its own.
        answers: What the dense network has answered the pruned ones that learn from it.
    """

    dense: Path | None = None
    start: Path | None = None
    masked: Path | None = None
    answers: Path | None = None


def compress(
    settings: Settings,
    profile: DeviceProfile,
    out: Path,
    observer: Observer,
    *,
    resume: bool,
    shared: Shared | None = None,
    bench: Bench = THIS_MACHINE,
) -> RunReport | None:
    """Trains dense and pruned, rebuilds, verifies, exports, measures and reports.

    Under ``torch.distributed`` every process calls this with the same arguments: all of them train, the first
    one measures and writes.

    Args:
        settings: What to do.
        profile: The device.
        out: The output folder; see :class:`~hwprune.output_folder.OutputFolder`.
        observer: Told how it goes.
        resume: Go on from the folder's checkpoints, where it has a run.
        shared: What is taken from other runs, and left for them.
        bench: What is measured on.

    Returns:
        The report, as written to ``report.json``; ``None`` in processes that are not the first.

    Raises:
        HwpruneError: For every error of the input or the run; the folder then holds checkpoints at most.
    """
    started, shared = time.perf_counter(), shared or Shared()
    with ExitStack() as held:
        from_first(lambda: held.enter_context(alone_in(out)))
        if from_first(lambda: OutputFolder.check(out, resume=resume)) != resume:
            observer.note(nothing_to_resume(out))
        job = _Job.prepare(settings, profile, observer, bench)
        folder = from_first(
            lambda: OutputFolder.open(out, settings.run_record(profile), resume=resume, started=started)
        )
        with folder.empty_if_nothing_is_kept():
            history = [*job.train_dense(folder, shared.dense), *job.train_pruned(folder, shared)]
        observer.note("rebuilding the slim network and comparing it with the masked one")
        result = job.compressor.finish([job.verification_images])
        return on_first(lambda: job.deliver(result, folder, history, shared.masked))


def train_dense(settings: Settings, out: Path, observer: Observer, shared: Path) -> None:
    """Trains the dense network of several runs, before any of them; goes on where it was interrupted.

    Args:
        settings: Of any of the runs; device, target and pruning do not matter.
        out: Holds the checkpoints; see :class:`~hwprune.output_folder.OutputFolder`.
        observer: Told how it goes.
        shared: Where the training is left; see :class:`Shared`.

    Raises:
        HwpruneError: For every error of the input or the training.
    """
    dataset = load_dataset(settings.data).first(settings.train_images)
    model = _new_model(settings, dataset)
    rehearse(model, dataset, settings.recipe)
    trainer = Trainer(model, dataset, settings.recipe)
    folder = OutputFolder.open(out, settings.dense_record(), resume=is_marked(out))
    with folder.empty_if_nothing_is_kept():
        run_phase("dense", trainer, folder, observer, None)
    save_shared(shared, folder.load_checkpoint("dense"), settings.dense_record())


def export_dense(settings: Settings, shared: Path, profile: DeviceProfile, path: Path) -> None:
    """Writes the dense network of several runs in single precision, as ONNX.

    Args:
        settings: Of any of the runs; target and pruning do not matter.
        shared: Where :func:`train_dense` has left the training; not read where the weights are given.
        profile: Says the batch where the network fixes it.
        path: The file. Its folder must exist.

    Raises:
        HwpruneError: If a file is damaged, or the network cannot be exported.
    """
    dataset = load_dataset(settings.data).first(settings.train_images)
    model = _new_model(settings, dataset)
    if settings.weights is None:
        model.load_state_dict(load_shared(shared, settings.dense_record())["trainer"]["model"])
    export(model, path, dataset.test_images[:2], batch=profile.runtime.batch)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One run at work.

    Attributes:
        settings: What to do.
        observer: Told how it goes.
        dataset: The data.
        dense: The network that stays dense.
        pruned: The one that is pruned; masked in the end.
        compressor: Prunes it.
        bench: What is measured on.
    """

    settings: Settings
    observer: Observer
    dataset: Dataset
    dense: nn.Module
    pruned: nn.Module
    compressor: Compressor
    bench: Bench

    @classmethod
    def prepare(cls, settings: Settings, profile: DeviceProfile, observer: Observer, bench: Bench) -> _Job:
        dataset = in_all(lambda: load_dataset(settings.data).first(settings.train_images))
        # A callable may return the same object every time: the other one is a copy.
        dense = in_all(lambda: _new_model(settings, dataset))
        pruned = copy_of(dense)
        recipe = settings.pruning_recipe
        rehearse(dense, dataset, recipe)
        total_steps = recipe.epochs * batches_per_epoch(dataset, recipe.batch_size)
        schedule = None
        if settings.fine_tune is not None:
            pull = needs_pull(settings.granularity, settings.penalty)
            schedule = StrengthSchedule.from_trained(total_steps, pull=pull)
        shape = "x".join(map(str, dataset.test_images.shape[1:]))
        compressor = Compressor(
            pruned,
            dataset.test_images[:2],
            profile.wanted_for(f"{settings.model}:{shape}"),
            settings.target,
            total_steps=total_steps,
            granularity=settings.granularity,
            penalty=settings.penalty,
            schedule=schedule,
            notify=observer.note,
            bench=bench,
        )
        return cls(settings, observer, dataset, dense, pruned, compressor, bench)

    @property
    def verification_images(self) -> torch.Tensor:
        return self.dataset.test_images[:VERIFICATION_IMAGES]

    def train_dense(self, folder: OutputFolder, shared: Path | None) -> list[dict[str, Any]]:
        """Trains the dense network, unless that has been done; the rows of the history."""
        if self.settings.weights is not None:
            return []
        taken = shared is not None and shared.is_file()
        if shared is not None and taken:
            state = load_shared(shared, self.settings.dense_record())
            # What is predicted for the dense network depends on the device.
            history = [for_device(row, self.compressor) for row in state["history"]]
            folder.save_checkpoint("dense", {**state, "history": history})
        trainer = Trainer(self.dense, self.dataset, self.settings.recipe)
        rows = run_phase("dense", trainer, folder, self.observer, self.compressor)
        if shared is not None and not taken:
            save_shared(shared, folder.load_checkpoint("dense"), self.settings.dense_record())
        return rows

    def train_pruned(self, folder: OutputFolder, shared: Shared) -> list[dict[str, Any]]:
        """Trains the pruned network; the rows of the history."""
        if self.settings.fine_tune is not None:
            self.pruned.load_state_dict(self._trained_weights(shared.start))
            self.compressor.proximal.bury_zeros()
            if self.settings.reconstruct and self.settings.granularity in SHRINKING:
                self.compressor.reconstruct_on(spread(self.dataset.train_images, self.settings.reconstruct))
        distillation = self.settings.distillation
        recipe = self.settings.pruning_recipe
        with shared_answers(shared.answers if distillation else None, self.dense) as answers:
            teacher = None if distillation is None else Teacher(self.dense, distillation, answers)
            trainer = Trainer(self.pruned, self.dataset, recipe, self.compressor.wrap, teacher)
            return run_phase("prune", trainer, folder, self.observer, self.compressor)

    def _trained_weights(self, start: Path | None) -> Mapping[str, Any]:
        """The weights that the pruned network starts from: of the run before it, or the dense ones."""
        looser = self.settings.follows
        if start is None or looser is None:
            return self.dense.state_dict()
        weights: Mapping[str, Any] = load_shared(start, self.settings.masked_record(looser))["model"]
        return weights

    def deliver(
        self,
        result: Result,
        folder: OutputFolder,
        history: list[dict[str, Any]],
        masked: Path | None,
    ) -> RunReport:
        """Exports, compares and times the networks and writes everything; the report."""
        networks = {"dense": self.dense, "slim": result.model}
        with folder.staging() as staging:
            paths = {name: staging / f"{name}.onnx" for name in networks}
            profile = self.compressor.profile
            for name, network in networks.items():
                images = self.dataset.test_images[:2]
                exported = export(network, paths[name], images, batch=profile.runtime.batch)
                if exported.note:
                    self.observer.note(f"the {name} network: {exported.note}")
            gap = verify_exported(self.pruned, paths["slim"], self.verification_images, profile)
            deployed = as_deployed(paths, profile.runtime, self.dataset)
            timings, described = self._described(networks, deployed, result.report.turns)
            self._doubt_turns(result, timings)
            preprocessing = self.dataset.preprocessing
            report = RunReport(
                settings=self.settings.as_record(),
                seconds=folder.seconds,
                versions=versions(),
                environment=dict(timings["slim"].environment),
                networks=described,
                result=result,
                runtime_gap=gap,
                image_shape=self.dataset.image_shape,
                preprocessing=None if preprocessing is None else asdict(preprocessing),
                classes=self.dataset.classes,
                class_names=self.dataset.class_names,
                history=history,
            )
            folder.write_result(deployed["slim"], paths["slim"], lambda path: result.save(path, versions()))
        if masked is not None:
            made_with = self.settings.masked_record(self.settings.target)
            save_shared(masked, {"model": dict(self.pruned.state_dict())}, made_with)
        write_report(folder.path, report)
        folder.remove_checkpoints()
        return report

    def _doubt_turns(self, result: Result, timings: Mapping[str, Timing]) -> None:
        """Forgets what the closed loop measured where the final timings do not bear it out."""
        target = self.settings.target
        if isinstance(target, Speedup | LatencyUs):
            report = result.report
            forget_disturbed(report.turns, report.groups["budget"], timings, target.allowed_us)

    def _described(
        self, networks: Mapping[str, nn.Module], deployed: Mapping[str, Path], turns: Sequence[Turn]
    ) -> tuple[dict[str, Timing], dict[str, dict[str, Any]]]:
        """Timings of the networks, measured alternately, and what the report says of each."""
        self.observer.note("timing dense and slim alternately")
        profile = self.compressor.profile
        patience = self.compressor.patience
        for turn in turns:  # of a run that was interrupted, too; those of older versions do not tell
            if turn.dense_us:
                patience.know(turn.dense_us)
        timings = patience.least_disturbed(lambda: self.bench.time(deployed, profile))
        return timings, {
            name: describe_network(network, deployed[name], timings[name], self.dataset, profile.runtime)
            for name, network in networks.items()
        }


def _new_model(settings: Settings, dataset: Dataset) -> nn.Module:
    model = make_model(
        settings.model,
        in_channels=dataset.image_shape[0],
        image_size=dataset.image_size,
        classes=dataset.classes,
        seed=settings.recipe.seed,
    )
    if settings.weights is not None:
        load_weights(model, Path(settings.weights))
    check_outputs(model, settings.model, dataset)
    check_state(model)
    return model
