"""One network or several, for many devices and targets: a folder for each variant, and a manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune.device.profile import DeviceProfile
from hwprune.errors import ArtifactError, InputError
from hwprune.executors.base import Executor, InProcess, Task, TaskObserver
from hwprune.executors.parcels import ARRIVING
from hwprune.files import TEMPORARY_FILES, write_json
from hwprune.folder_lock import alone_in
from hwprune.output_folder import CHECKPOINTS, OutputFolder, is_marked, may_take, nothing_to_resume
from hwprune.quantized_export import format_for, has_8_bits
from hwprune.runtime.base import runtime_for
from hwprune.runtime.environment import environment, versions
from hwprune.settings import Settings
from hwprune.targets import Speedup, Target, describe
from hwprune.train.distillation import Distillation
from hwprune.train.loop import Recipe
from hwprune.variant_tasks import (
    DENSE,
    SHARED_FOLDER,
    DenseTask,
    Variant,
    VariantTask,
    drop_unusable,
    folder_name,
    shared_file,
)
from hwprune.variants_kept import keep_others, keep_whole
from hwprune.variants_page import MANIFEST_FILE, VariantsFolder
from hwprune.workloads import load_dataset, read_weights

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Grid:
    """Which variants to make: every model for every device at every target.

    Attributes:
        models: Built-in names or ``package.module:callable``.
        data: Built-in name or ``package.module:callable``.
        devices: Name or folder to profile.
        targets: What to reach.
        recipe: How every model is trained, dense and pruned.
        penalty: Which penalty drives the groups.
        train_images: Use only the first so many training images; ``None`` for all.
        granularity: What a group is; by default what the rules of each device say.
        distillation: How every variant learns from its dense network; ``None`` for not at all.
        weights: File of trained weights of the only model, which is then not trained.
        fine_tune: How a variant is trained that starts from the dense network: the loosest target of a kind.
            ``None``: every variant is trained from scratch.
        further: How one is trained that starts from what a looser target left; by default likewise.
        reconstruct: See :class:`~hwprune.pipeline.Settings`.
        int8: Whether every variant is quantised besides, and measured and scored on 8 bits, where its device
            can.
        profiles: The folder that profiles were looked for in first, as the user named it.

    Raises:
        InputError: If there is no variant, two would share a folder, weights have several models to go to, or
            no device can run what is quantised.
    """

    models: Sequence[str]
    data: str
    devices: Mapping[str, DeviceProfile]
    targets: Sequence[Target]
    recipe: Recipe
    penalty: str = "envelope"
    train_images: int | None = None
    granularity: str | None = None
    weights: str | None = None
    fine_tune: Recipe | None = None
    distillation: Distillation | None = None
    reconstruct: int = 0
    int8: bool = False
    profiles: str | None = None
    further: Recipe | None = None

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants()]
        if not names:
            raise InputError("there is no variant to make", expected="a model, a device and a target")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError("two variants are the same", expected="different ones", got=", ".join(twice))

        if self.weights is not None and len(self.models) > 1:
            raise InputError(
                "weights are those of one model", expected="one model", got=", ".join(self.models)
            )
        profiles = list(self.devices.values())
        if self.int8 and not any(map(has_8_bits, profiles)):
            format_for(profiles[0])  # tells what it lacks

    def variants(self) -> list[Variant]:
        """Every variant, those of one model together and a looser target before a tighter one."""
        # A node that shares no disk has no file of ours: the rows travel with the profile.
        whole = {
            device: profile.model_copy(update={"rows": profile.table})
            for device, profile in self.devices.items()
        }
        return [
            Variant(
                folder_name(model, profile, target),
                Settings(
                    model,
                    self.data,
                    device,
                    target,
                    self.recipe,
                    self.penalty,
                    self.train_images,
                    self.granularity or profile.granularity,
                    self.weights,
                    self.fine_tune,
                    looser if self.fine_tune is not None else None,
                    self.distillation,
                    self.reconstruct,
                    self.profiles,
                    self.further,
                ),
                profile,
                self.int8 and has_8_bits(profile),
            )
            for model in self.models
            for device, profile in whole.items()
            for looser, target in _chained(self.targets)
        ]


def _chained(targets: Sequence[Target]) -> Iterator[tuple[Target | None, Target]]:
    """Targets from loose to tight, kind by kind, each with the one before it of its kind."""
    for kind in dict.fromkeys(type(target) for target in targets):
        ordered = sorted(
            (target for target in targets if isinstance(target, kind)),
            key=lambda target: describe(target)["value"],
            reverse=kind is not Speedup,
        )
        yield from zip([None, *ordered], ordered, strict=False)


def make_variants(
    grid: Grid, out: Path, observer: TaskObserver, *, resume: bool, executor: Executor | None = None
) -> VariantsFolder:
    """Makes all variants; one that fails does not lose the others.

    Args:
        grid: Which.
        out: The output folder.
        observer: Told how it goes.
        resume: Keep variants that are finished and whole, those of other grids too, and go on with one that
            was interrupted.
        executor: Who makes them; one after the other in this process by default.

    Returns:
        The folder, with its manifest and page written.

    Raises:
        ArtifactError: If the folder is not ours, another command is at work in it, or it is to be gone on
            with and was made with other settings.
        RuntimeUnavailableError: If this process is to make them and lacks the runtime of a device.
        HwpruneError: If the executor cannot begin.
    """
    with alone_in(out):
        return _make_variants(grid, out, observer, resume=resume, executor=executor or InProcess())


def _make_variants(
    grid: Grid, out: Path, observer: TaskObserver, *, resume: bool, executor: Executor
) -> VariantsFolder:
    goes_on = _check_folder(out, resume=resume)
    if resume and not goes_on:
        observer.note(nothing_to_resume(out))
    if executor.here:
        _check_inputs(grid, anew=not goes_on)
    for profile in grid.devices.values():
        if grid.int8 and not has_8_bits(profile):
            runs = f"{profile.runtime.precision} in {profile.runtime.kind}"
            observer.note(f"{profile.name} runs {runs}: its variants are not quantised besides")
    variants = grid.variants()
    _sweep(variants, out)
    entries = (keep_whole if goes_on else keep_others)(variants, out, observer.note)
    if goes_on or (out / MANIFEST_FILE).is_file():
        # What is made anew is not what is listed: were it interrupted, it would be made once more.
        _write_manifest(out, entries.values())
    if not goes_on:
        _forget(variants, out)
    by_name = {variant.name: variant for variant in variants}
    missing = [variant for variant in variants if variant.name not in entries]
    order = list(dict.fromkeys([*by_name, *entries]))
    for line in drop_unusable(missing, out):
        observer.note(line)
    tasks = list(_tasks(missing, out, resume=goes_on))
    for outcome in executor.run(tasks, out, observer):
        name = outcome.task.name
        if outcome.error is not None:
            observer.note(f"{name} was not made: {outcome.error}")
        if name in by_name:
            failure = outcome.error and by_name[name].failed_entry(outcome.error, out / name)
            entries[name] = failure or dict(outcome.told)
            if outcome.error is None and entries[name]["status"] == "failed":
                observer.note(f"{name} was measured, but: {entries[name]['error']}")
        _write_manifest(out, [entries.get(name) or by_name[name].pending_entry() for name in order])
    _write_manifest(out, [entries[name] for name in order])
    folder = VariantsFolder.read(out)
    folder.write_page()
    return folder


def _sweep(variants: Sequence[Variant], out: Path) -> None:
    """Removes what processes have left that were killed while they wrote, or while something arrived."""
    for folder in out.glob(f"{ARRIVING}*"):
        shutil.rmtree(folder)
    written = [*out.glob(TEMPORARY_FILES), *(out / SHARED_FOLDER).glob(TEMPORARY_FILES)]
    for variant in variants:
        written += (out / variant.name).rglob(TEMPORARY_FILES)
    for file in written:
        file.unlink()


def _check_inputs(grid: Grid, *, anew: bool) -> None:
    """Raises before anything is trained or removed where a runtime, the data or the weights are not there.

    Args:
        grid: What is asked for.
        anew: Whether all of it is to be made. What is finished needs data no more.

    Raises:
        HwpruneError: In that case.
    """
    for profile in grid.devices.values():
        runtime_for(profile.runtime)
    if not anew:
        return
    load_dataset(grid.data).first(grid.train_images)
    if grid.weights is not None:
        read_weights(Path(grid.weights))


def _forget(variants: Sequence[Variant], out: Path) -> None:
    """Removes what an earlier start has left of the variants: one that is interrupted would count as made."""
    # The user's own network may have changed under the same name.
    shutil.rmtree(out / SHARED_FOLDER, ignore_errors=True)
    for variant in variants:
        folder = out / variant.name
        if is_marked(folder):
            OutputFolder.open(folder, variant.settings.run_record(variant.profile), resume=False)
            shutil.rmtree(folder / CHECKPOINTS)


def _tasks(variants: Sequence[Variant], out: Path, *, resume: bool) -> Iterator[Task]:
    """What is to be done, in an order in which it could be done one by one."""
    names: set[str] = set()
    for variant in variants:
        dense, given = variant.dense_name, variant.settings.weights is not None
        if not given and dense not in names and not (out / shared_file(dense)).is_file():
            names.add(dense)
            yield DenseTask(variant)
        requires = tuple(name for name in (dense,) if name in names)
        after = tuple(name for name in (variant.looser,) if name in names)
        names.add(variant.name)
        yield VariantTask(variant, requires, after, resume)


def _check_folder(out: Path, *, resume: bool) -> bool:
    """Whether there are variants to go on with; raises where the folder is not ours."""
    if out.exists() and not out.is_dir():
        raise ArtifactError("the output folder is a file", where=out, expected="a folder or nothing")
    ours = _is_ours(out)
    # A process that was killed while the first files arrived from a node has left those and nothing else.
    if out.is_dir() and not ours and not all(item.match(f"{ARRIVING}*") for item in out.iterdir()):
        raise ArtifactError(
            "the output folder exists and is not ours",
            where=out,
            expected="no such folder, an empty one, or one written by hwprune variants",
            hint="name another one with --out",
        )
    return resume and ours


def _is_ours(out: Path) -> bool:
    """Whether variants are in a folder, or what an interrupted start has left before any was made."""
    manifest, shared = out / MANIFEST_FILE, out / SHARED_FOLDER
    if manifest.exists():
        try:
            content = json.loads(manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        # Browser extensions and web pages have manifests too.
        return isinstance(content, dict) and isinstance(content.get("variants"), list)
    return shared.is_dir() and all(
        item.name.startswith(DENSE) or may_take(item)
        if item.is_dir()
        else item.match("*.safetensors") or item.match(TEMPORARY_FILES)
        for item in shared.iterdir()
    )


def _write_manifest(out: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / MANIFEST_FILE,
        {
            "schema": SCHEMA,
            "versions": versions(),
            "environment": environment(),
            "variants": list(entries),
        },
    )
