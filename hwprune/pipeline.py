"""The whole job, one line per arrow: see :func:`compress`.

profile -> graph -> groups -> costs -> proximal training -> survivors -> slim model -> exported file ->
measured latency -> report
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwprune.closed_loop import Turn, forget_disturbed
from hwprune.compressor import Compressor
from hwprune.delivery import as_deployed, describe_network, verify_exported
from hwprune.device.profile import DeviceProfile
from hwprune.errors import TargetError
from hwprune.folder_lock import alone_in
from hwprune.granularities import SHRINKING
from hwprune.graph.twin import copy_of
from hwprune.output_folder import OutputFolder, is_marked, nothing_to_resume
from hwprune.phases import Observer, for_device, run_phase
from hwprune.processes import from_first, in_all, on_first
from hwprune.report import RunReport, write_report
from hwprune.result import Result
from hwprune.runtime.bench import THIS_MACHINE, Bench
from hwprune.runtime.environment import versions
from hwprune.runtime.export import export
from hwprune.runtime.timing import Timing
from hwprune.settings import Settings, Shared
from hwprune.shared_files import load_shared, save_shared, shared_answers
from hwprune.surgery.artifact import check_state
from hwprune.targets import LatencyUs, Speedup
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

#: Names of the trainings that follow where a finished network misses its target, one after the other.
CORRECTIONS = ("correct1", "correct2")
#: Test images that slim and masked are compared on.
VERIFICATION_IMAGES = 64


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
        staging = on_first(lambda: held.enter_context(folder.staging()))
        made = job.finish(folder, staging, shared, history)
        return on_first(lambda: job.deliver(made, folder, history, shared.masked))


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
        with self._trainer(self.settings.pruning_recipe, shared) as trainer:
            return run_phase("prune", trainer, folder, self.observer, self.compressor)

    @contextmanager
    def _trainer(self, recipe: Recipe, shared: Shared) -> Iterator[Trainer]:
        """Yields what trains the pruned network; afterwards the teacher's answers are left for other runs."""
        distillation = self.settings.distillation
        with shared_answers(shared.answers if distillation else None, self.dense) as answers:
            teacher = None if distillation is None else Teacher(self.dense, distillation, answers)
            yield Trainer(self.pruned, self.dataset, recipe, self.compressor.wrap, teacher)

    def _trained_weights(self, start: Path | None) -> Mapping[str, Any]:
        """The weights that the pruned network starts from: of the run before it, or the dense ones."""
        looser = self.settings.follows
        if start is None or looser is None:
            return self.dense.state_dict()
        weights: Mapping[str, Any] = load_shared(start, self.settings.masked_record(looser))["model"]
        return weights

    def finish(
        self, folder: OutputFolder, staging: Path | None, shared: Shared, history: list[dict[str, Any]]
    ) -> _Made:
        """Rebuilds, exports and times the pruned network, and corrects it while it misses its target.

        Args:
            folder: Holds the checkpoints.
            staging: Where files go until they are delivered; ``None`` in processes that are not the first.
            shared: See :func:`compress`.
            history: Rows of further epochs are added to it.
        """
        for phase in CORRECTIONS:
            if not from_first(partial(folder.has_checkpoint, phase)):
                # What decided in one run decides in all: no timing is as quiet twice.
                turn = from_first(self.compressor.known)
                made = None
                if turn is None:
                    made = self._made(staging)
                    turn = made.turn
                if turn is None or not turn.missed or not self._corrected(turn):
                    return made or self._made(staging)
            history += self._train_corrected(phase, folder, shared)
        return self._made(staging)

    def _corrected(self, turn: Turn) -> bool:
        """Takes out more of a network that missed its target; false where nothing is left to take out."""
        settings = self.settings
        fitted = settings.reconstruct and settings.granularity in SHRINKING
        inputs = spread(self.dataset.train_images, settings.reconstruct) if fitted else None
        where = " in an earlier run" if turn.reused else ""
        took = f"finished, it took {turn.measured_us:.1f} us of {turn.allowed_us:.1f} us allowed{where}"
        try:
            self.compressor.correct(turn, inputs)
        except TargetError as error:
            self.observer.note(f"{took}, and {error.what}: {error.expected}")
            return False
        self.observer.note(f"{took}: more was taken out, and what is left is trained once more")
        return True

    def _train_corrected(self, phase: str, folder: OutputFolder, shared: Shared) -> list[dict[str, Any]]:
        """Trains a network that was corrected, or goes on; the rows of the history."""
        self.compressor.proximal.release()
        with self._trainer(self.settings.correction_recipe, shared) as trainer:
            if not from_first(partial(folder.has_checkpoint, phase)):  # a resumed run is to correct it alike
                state = {"trainer": trainer.state_dict(), "history": []}
                on_first(partial(folder.save_checkpoint, phase, state))
            return run_phase(phase, trainer, folder, self.observer, self.compressor)

    def _made(self, staging: Path | None) -> _Made:
        """Rebuilds the slim network, and exports, compares and times it in the first process."""
        self.observer.note("rebuilding the slim network and comparing it with the masked one")
        result = self.compressor.finish([self.verification_images])
        timed = on_first(lambda: self._timed(result, staging))
        turn = from_first(lambda: None if timed is None else self.compressor.judged(timed.timings))
        report = result.report
        corrected = any(each.finished for each in report.turns)
        if turn is not None and (corrected or turn.part > 1):
            result = replace(result, report=replace(report, turns=(*report.turns, turn)))
        return _Made(result, timed, turn)

    def _timed(self, result: Result, staging: Path | None) -> _Timed:
        assert staging is not None  # in the first process
        paths = {name: staging / f"{name}.onnx" for name in ("dense", "slim")}
        profile = self.compressor.profile
        for name, network in (("dense", self.dense), ("slim", result.model)):
            images = self.dataset.test_images[:2]
            exported = export(network, paths[name], images, batch=profile.runtime.batch)
            if exported.note:
                self.observer.note(f"the {name} network: {exported.note}")
        gap = verify_exported(self.pruned, paths["slim"], self.verification_images, profile)
        deployed = as_deployed(paths, profile.runtime, self.dataset)
        self.observer.note("timing dense and slim alternately")
        patience = self.compressor.patience
        for turn in result.report.turns:  # of a run that was interrupted, too; old ones do not tell
            if turn.dense_us:
                patience.know(turn.dense_us)

        def time_undisturbed() -> dict[str, Timing]:
            return patience.least_disturbed(lambda: self.bench.time(deployed, profile))

        timings = time_undisturbed()
        if self._misses(timings):
            # Worth a second look; which of the two counts is not the slim network's to say.
            timings = min(timings, time_undisturbed(), key=lambda each: each["dense"].undisturbed_us)
        return _Timed(paths["slim"], deployed, gap, timings)

    def _misses(self, timings: Mapping[str, Timing]) -> bool:
        """Whether the slim network takes longer than it may, by the medians."""
        target = self.settings.target
        if not isinstance(target, Speedup | LatencyUs):
            return False
        return timings["slim"].median_us > target.allowed_us(timings["dense"].median_us)

    def deliver(
        self, made: _Made, folder: OutputFolder, history: list[dict[str, Any]], masked: Path | None
    ) -> RunReport:
        """Writes everything; the report."""
        result, timed = made.result, made.timed
        assert timed is not None  # in the first process
        self._doubt_turns(result, timed.timings)
        spec, preprocessing = self.compressor.profile.runtime, self.dataset.preprocessing
        report = RunReport(
            settings=self.settings.as_record(),
            seconds=folder.seconds,
            versions=versions(),
            environment=dict(timed.timings["slim"].environment),
            networks={
                name: describe_network(network, timed.deployed[name], timed.timings[name], self.dataset, spec)
                for name, network in (("dense", self.dense), ("slim", result.model))
            },
            result=result,
            runtime_gap=timed.gap,
            image_shape=self.dataset.image_shape,
            preprocessing=None if preprocessing is None else asdict(preprocessing),
            classes=self.dataset.classes,
            class_names=self.dataset.class_names,
            history=history,
        )
        deployed, single = timed.deployed["slim"], timed.single
        files = folder.write_result(deployed, single, lambda path: result.save(path, versions()))
        report = replace(report, files=files)
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


@dataclass(frozen=True, slots=True, eq=False)
class _Timed:
    """What is known of the files of a run.

    Attributes:
        single: The slim network in single precision.
        deployed: Name to file as the device runs it.
        gap: Slim in the runtime against masked in PyTorch.
        timings: Name to timing, of networks timed alternately.
    """

    single: Path
    deployed: Mapping[str, Path]
    gap: float
    timings: Mapping[str, Timing]


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """A pruned network, rebuilt.

    Attributes:
        result: The compression.
        timed: Its files, and what they take; ``None`` in processes that are not the first.
        turn: The same as a turn of the closed loop; see :meth:`~hwprune.compressor.Compressor.judged`.
    """

    result: Result
    timed: _Timed | None
    turn: Turn | None


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
