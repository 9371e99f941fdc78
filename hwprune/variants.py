"""One network or several, for many devices and targets: a folder for each variant, and a manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hwprune.device.profile import DeviceProfile
from hwprune.errors import ArtifactError, HwpruneError, InputError
from hwprune.files import write_json
from hwprune.output_folder import MARKER
from hwprune.phases import Observer
from hwprune.pipeline import Settings, Shared, compress
from hwprune.quantized_export import INT8_FOLDER, add_quantized, format_for
from hwprune.report import REPORT_FILE, read_json
from hwprune.runtime.environment import environment, versions
from hwprune.shipping import file_hashes, make_shippable
from hwprune.targets import Speedup, Target, describe
from hwprune.train.distillation import Distillation
from hwprune.train.loop import Recipe
from hwprune.variants_page import MANIFEST_FILE, VariantsFolder

SCHEMA = 1
#: What is known of a variant on 8 bits, beside its files.
INT8_FILE = "int8.json"
#: What variants hand to each other: dense trainings, and masked networks that others start from.
SHARED_FOLDER = ".shared"


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
        granularity: What a group is.
        distillation: How every variant learns from its dense network; ``None`` for not at all.
        weights: File of trained weights of the only model, which is then not trained.
        fine_tune: How every variant is trained that starts from trained weights: the loosest target of a
            kind from the dense network, a tighter one from what the looser left. ``None``: every variant
            is trained from scratch.
        int8: Whether every variant is quantised besides, and measured and scored on 8 bits.

    Raises:
        InputError: If there is no variant, two would share a folder, weights have several models to go to, or
            a device cannot run what is quantised.
    """

    models: Sequence[str]
    data: str
    devices: Mapping[str, DeviceProfile]
    targets: Sequence[Target]
    recipe: Recipe
    penalty: str = "envelope"
    train_images: int | None = None
    granularity: str = "channel"
    weights: str | None = None
    fine_tune: Recipe | None = None
    distillation: Distillation | None = None
    int8: bool = False

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
        if self.int8:
            for profile in self.devices.values():
                format_for(profile)

    def variants(self) -> list[Variant]:
        """Every variant, those of one model together and a looser target before a tighter one."""
        return [
            Variant(
                _folder_name(model, profile, target),
                Settings(
                    model,
                    self.data,
                    device,
                    target,
                    self.recipe,
                    self.penalty,
                    self.train_images,
                    self.granularity,
                    self.weights,
                    self.fine_tune,
                    looser if self.fine_tune is not None else None,
                    self.distillation,
                ),
                profile,
                self.int8,
            )
            for model in self.models
            for device, profile in self.devices.items()
            for looser, target in _chained(self.targets)
        ]


@dataclass(frozen=True, slots=True)
class Variant:
    """One variant of a grid.

    Attributes:
        name: Of its folder.
        settings: What its run is asked to do.
        profile: Its device.
        int8: Whether it is quantised besides.
    """

    name: str
    settings: Settings
    profile: DeviceProfile
    int8: bool = False


def _chained(targets: Sequence[Target]) -> Iterator[tuple[Target | None, Target]]:
    """Targets from loose to tight, kind by kind, each with the one before it of its kind."""
    for kind in dict.fromkeys(type(target) for target in targets):
        ordered = sorted(
            (target for target in targets if isinstance(target, kind)),
            key=lambda target: describe(target)["value"],
            reverse=kind is not Speedup,
        )
        yield from zip([None, *ordered], ordered, strict=False)


def make_variants(grid: Grid, out: Path, observer: Observer, *, resume: bool) -> VariantsFolder:
    """Makes all variants one after the other; one that fails does not lose the others.

    Args:
        grid: Which.
        out: The output folder.
        observer: Told how it goes.
        resume: Keep variants that are finished, go on with one that was interrupted.

    Returns:
        The folder, with its manifest and page written.

    Raises:
        ArtifactError: If the folder is not ours.
    """
    _check_folder(out, resume=resume)
    if resume:
        for variant in grid.variants():
            _check_settings(out / variant.name, variant.settings)
    else:  # the user's own network may have changed under the same name
        shutil.rmtree(out / SHARED_FOLDER, ignore_errors=True)
    (out / SHARED_FOLDER).mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    for variant in grid.variants():
        observer.note(f"variant {len(entries) + 1} of {len(grid.variants())}: {variant.name}")
        entries.append(_make_one(variant, out, observer, resume=resume))
        _write_manifest(out, entries)
    folder = VariantsFolder.read(out)
    folder.write_page()
    return folder


def _make_one(variant: Variant, out: Path, observer: Observer, *, resume: bool) -> dict[str, Any]:
    """The manifest's entry of one variant, made where it is not there yet."""
    name, settings, profile = variant.name, variant.settings, variant.profile
    entry: dict[str, Any] = {
        "name": name,
        "model": settings.model,
        "data": settings.data,
        "device": profile.name,
        "target": describe(settings.target),
    }
    try:
        record = _finished(out / name) if resume else None
        if record is None:
            shutil.rmtree(out / name / INT8_FOLDER, ignore_errors=True)  # of another run
            begun = resume and (out / name / MARKER).is_file()
            settings, shared = _what_is_shared(variant, out / SHARED_FOLDER)
            compress(settings, profile, out / name, observer, resume=begun, shared=shared)
            record = read_json(out / name / REPORT_FILE, "hwprune prune")
        make_shippable(out / name, record, profile.runtime)
        quantized = {"int8": _quantized(out / name, profile, observer)} if variant.int8 else {}
    except HwpruneError as error:
        observer.note(f"variant {name} failed: {error}")
        return {**entry, "status": "failed", "error": str(error)}
    return {
        **entry,
        "status": "done" if record["target_met"] else "missed",
        **{key: record[key] for key in ("dense", "slim", "speedup", "predicted_us", "environment")},
        **quantized,
        "files": file_hashes(out / name),
    }


def _quantized(folder: Path, profile: DeviceProfile, observer: Observer) -> dict[str, Any]:
    """What the manifest says of a variant on 8 bits, made where it is not there yet."""
    path = folder / INT8_FOLDER / INT8_FILE
    if not path.is_file():
        observer.note("quantising the slim network and timing it against single precision")
        write_json(path, add_quantized(folder, profile))
    return read_json(path, "hwprune variants --int8")


def _what_is_shared(variant: Variant, folder: Path) -> tuple[Settings, Shared]:
    """A variant's settings, and the files that it shares with others."""
    settings = variant.settings
    dense = folder / f"{_dense_key(settings)}.safetensors"
    if settings.fine_tune is None:
        return settings, Shared(dense)
    start = None
    if settings.follows is not None:
        looser = _folder_name(settings.model, variant.profile, settings.follows)
        start = folder / f"{looser}.safetensors"
        if not start.is_file():  # the looser variant failed: begin where it would have begun
            settings, start = replace(settings, follows=None), None
    return settings, Shared(dense, start, folder / f"{variant.name}.safetensors")


def _finished(folder: Path) -> dict[str, Any] | None:
    """The report of a variant that is complete."""
    if not (folder / REPORT_FILE).is_file():
        return None
    return read_json(folder / REPORT_FILE, "hwprune prune")


def _check_settings(folder: Path, settings: Settings) -> None:
    """Raises where a variant was begun with other settings."""
    if not (folder / MARKER).is_file():
        return
    begun_with = read_json(folder / MARKER, "hwprune prune").get("settings", {})
    # A variant whose looser one failed started from the dense network.
    asked = {**settings.as_record(), "follows": begun_with.get("follows")}
    if begun_with != json.loads(json.dumps(asked)):
        raise ArtifactError(
            "a variant was made with other settings",
            where=folder,
            hint="give the same options, or start without --resume",
        )


def _dense_key(settings: Settings) -> str:
    """What a dense training depends on."""
    key = [settings.model, settings.data, settings.train_images, settings.weights, asdict(settings.recipe)]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]


def _folder_name(model: str, profile: DeviceProfile, target: Target) -> str:
    described = describe(target)
    plain = model.replace(":", ".").replace("/", ".")
    return f"{plain}-{profile.name}-{described['kind']}-{described['value']:g}"


def _check_folder(out: Path, *, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ArtifactError("the output folder is a file", where=out, expected="a folder or nothing")
    ours = (out / MANIFEST_FILE).is_file() or (out / SHARED_FOLDER).is_dir()
    if out.is_dir() and any(out.iterdir()) and not ours:
        raise ArtifactError(
            "the output folder exists and is not ours",
            where=out,
            expected="no such folder, an empty one, or one written by hwprune variants",
            hint="name another one with --out",
        )
    if resume and not ours:
        raise ArtifactError(
            "there is nothing to resume",
            where=out,
            expected="the output folder of interrupted variants",
            hint="start without --resume",
        )


def _write_manifest(out: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    write_json(
        out / MANIFEST_FILE,
        {
            "schema": SCHEMA,
            "versions": versions(),
            "environment": environment(),
            "variants": list(entries),
        },
    )
