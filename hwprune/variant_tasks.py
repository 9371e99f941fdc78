"""The tasks that variants are made of: a dense training for each model, and the variants."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hwprune.device.profile import DeviceProfile
from hwprune.errors import ArtifactError, HwpruneError, TargetError
from hwprune.files import sha256_of, write_json
from hwprune.outcome import guessing_line, shortfall_line, surplus_line
from hwprune.output_folder import (
    CHECKPOINTS,
    INT8_FILE,
    INT8_FOLDER,
    MARKER,
    REPORT_FILE,
    SINGLE_FILE,
    is_marked,
)
from hwprune.phases import Observer
from hwprune.pipeline import compress, export_dense, train_dense
from hwprune.quantized_export import DENSE_FACTS, add_quantized, quantize_dense
from hwprune.report import read_json, told_where_damaged
from hwprune.runtime.bench import Bench
from hwprune.settings import Settings, Shared
from hwprune.shared_files import load_shared
from hwprune.shipping import file_hashes, make_shippable
from hwprune.targets import Target, describe, in_digits

#: What variants hand to each other: dense trainings, what those networks have answered, and masked networks.
SHARED_FOLDER = ".shared"
#: Beginning of the names of dense trainings, and of the folders with their checkpoints.
DENSE = "dense-"
#: Settings that a manifest tells of a variant.
MADE_WITH = (
    *("seed", "epochs", "recipe", "fine_tune", "follows", "weights", "train_images"),
    *("penalty", "granularity", "distillation", "reconstruct"),
)
#: What a manifest takes from the report of a variant.
MEASURED = ("dense", "slim", "speedup", "predicted_us", "environment", "versions")


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

    @property
    def looser(self) -> str | None:
        """Name of the variant whose network this one starts from."""
        follows = self.settings.follows
        return None if follows is None else folder_name(self.settings.model, self.profile, follows)

    def _started_from(self, follows: Mapping[str, Any] | None) -> str | None:
        """Name of the variant at a target, as reports describe it, which a variant has started from."""
        return None if follows is None else _named(self.settings.model, self.profile, follows)

    @property
    def _weights(self) -> dict[str, str]:
        """What tells the user's weights from others in a file of the same name."""
        weights = self.settings.weights
        known = weights is not None and Path(weights).is_file()
        return {"weights_sha256": sha256_of(Path(str(weights)))} if known else {}

    @property
    def dense_name(self) -> str:
        """Name of the dense training that it shares with all variants of the same model, data and recipe."""
        settings = self.settings
        key = [settings.model, settings.data, settings.train_images, settings.weights]
        digest = hashlib.sha256(json.dumps([*key, asdict(settings.recipe)]).encode()).hexdigest()[:16]
        return f"{DENSE}{settings.model.replace(':', '.').replace('/', '.')}-{digest}"

    @property
    def answers_name(self) -> str:
        """Names what its dense network has answered all that learn from it."""
        return f"answers-{self.dense_name}"

    @property
    def dense_int8(self) -> str:
        """Folder of the dense network on 8 bits, shared by all variants for the device."""
        return f"{SHARED_FOLDER}/{self.dense_name}-int8-{self.profile.name}"

    def entry(self, folder: Path, lacks: HwpruneError | None = None) -> dict[str, Any]:
        """Makes a finished run ready to ship and returns the manifest's entry of it.

        What was measured stays in the entry of one that cannot be made ready; it has failed all the same.

        Args:
            folder: Of the variant.
            lacks: Why it is not on 8 bits although that was asked for.

        Raises:
            ArtifactError: If the report is damaged.
        """
        # Left by a process that was killed right after it wrote the report.
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        quantised = self.int8 and lacks is None
        int8 = read_json(folder / INT8_FILE, "hwprune variants --int8") if quantised else None
        record = read_json(folder / REPORT_FILE, "hwprune prune")
        entry = self._measured_entry(folder, record)
        if int8:
            entry["int8"] = int8
        try:
            make_shippable(folder, record, self.profile, int8)
        except ArtifactError:
            raise
        except HwpruneError as error:  # its runtime is missing, say, or computes something else
            lacks = lacks or error
        failure = {} if lacks is None else {"status": "failed", "error": str(lacks)}
        return {**entry, **failure, "files": file_hashes(folder)}

    def _measured_entry(self, folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
        """What a manifest says of a run that was finished, by its report."""
        with told_where_damaged(folder / REPORT_FILE):
            shortfall, surplus = shortfall_line(record), surplus_line(record)
            told = (f"the slim network is {surplus}" if surplus else None, guessing_line(record))
            notes = [line for line in told if line]
            return {
                **self._label(record),
                "status": "missed" if shortfall else "done",
                **({"reason": shortfall} if shortfall else {}),
                **({"notes": notes} if notes else {}),
                **{key: record[key] for key in MEASURED},
            }

    def failed_entry(self, error: Exception, folder: Path) -> dict[str, Any]:
        """The manifest's entry of a variant that could not be made; on no device can every target be met.

        Args:
            error: Why not.
            folder: Of the variant: its numbers stay where it was measured before.
        """
        if isinstance(error, TargetError):
            return {**self._label(self._asked), "status": "unreachable", "reason": str(error)}
        entry = self._label(self._asked)
        if (folder / REPORT_FILE).is_file():
            with contextlib.suppress(ArtifactError):
                entry = self._measured_entry(folder, read_json(folder / REPORT_FILE, "hwprune prune"))
        return {**entry, "status": "failed", "error": str(error)}

    def pending_entry(self) -> dict[str, Any]:
        """The manifest's entry of a variant that is still to be made."""
        return {**self._label(self._asked), "status": "pending"}

    @property
    def _asked(self) -> dict[str, Any]:
        """What a report would say of the settings."""
        record = self.settings.as_record()
        return {**record, **{key: record["recipe"][key] for key in ("seed", "epochs")}}

    def _label(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What a manifest says of it, made or not: what it is and what it comes from.

        Args:
            record: The settings that it was made with, as its report has them; those of older versions know
                fewer.
        """
        return {
            "name": self.name,
            "model": self.settings.model,
            "data": self.settings.data,
            "device": self.profile.name,
            "hardware": self.profile.hardware.model_dump(),
            "target": describe(self.settings.target),
            "settings": {
                "device": self.settings.device,
                "profiles": self.settings.profiles,
                "int8": self.int8,
                **{key: record.get(key) for key in MADE_WITH},
            },
            "from": {
                "dense": None if self.settings.weights else self.dense_name,
                "looser": self._started_from(record.get("follows")),
                **self._weights,
            },
        }


def folder_name(model: str, profile: DeviceProfile, target: Target) -> str:
    """Of the variant of a model for a device at a target."""
    return _named(model, profile, describe(target))


def _named(model: str, profile: DeviceProfile, target: Mapping[str, Any]) -> str:
    plain = model.replace(":", ".").replace("/", ".")
    return f"{plain}-{profile.name}-{target['kind']}-{in_digits(target['value'])}"


def shared_file(name: str) -> str:
    """Where a dense training or a variant leaves its network for others."""
    return f"{SHARED_FOLDER}/{name}.safetensors"


def drop_unusable(variants: Iterable[Variant], out: Path) -> Iterator[str]:
    """Removes what variants would start from but cannot: files that are damaged or of other settings.

    A dense training is then done anew; instead of from a masked network a variant starts from the dense one.

    Yields:
        A line for every file that is removed.
    """
    wanted: dict[str, Mapping[str, Any]] = {}
    for variant in variants:
        settings = variant.settings
        wanted[shared_file(variant.dense_name)] = settings.dense_record()
        if variant.looser is not None and settings.follows is not None:
            wanted[shared_file(variant.looser)] = settings.masked_record(settings.follows)
    for name, made_with in wanted.items():
        if not (out / name).is_file():
            continue
        try:
            load_shared(out / name, made_with)
        except ArtifactError as error:
            (out / name).unlink()
            yield f"{error.what}, going on without: {out / name}"


def begun_with(folder: Path) -> Mapping[str, Any] | None:
    """The settings that the variant in a folder was begun with; ``None`` where none was.

    Raises:
        ArtifactError: If its mark is damaged.
    """
    if not is_marked(folder):
        return None
    settings = read_json(folder / MARKER, "hwprune prune").get("settings")
    return settings if isinstance(settings, dict) else {}


@dataclass(frozen=True, slots=True)
class DenseTask:
    """Trains a model that several variants start from, or are compared with.

    Attributes:
        variant: Any of them.
    """

    variant: Variant
    requires: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Tells the training from others."""
        return self.variant.dense_name

    @property
    def needs(self) -> tuple[str, ...]:
        """The checkpoints of an interrupted training."""
        return (f"{SHARED_FOLDER}/{self.name}",)

    @property
    def makes(self) -> tuple[str, ...]:
        """The training, or its checkpoints where it has failed."""
        return (shared_file(self.name), *self.needs)

    def run(self, root: Path, bench: Bench, observer: Observer) -> Mapping[str, Any]:
        """See :meth:`hwprune.executors.base.Task.run`."""
        checkpoints = root / SHARED_FOLDER / self.name
        checkpoints.parent.mkdir(parents=True, exist_ok=True)
        train_dense(self.variant.settings, checkpoints, observer, root / shared_file(self.name))
        shutil.rmtree(checkpoints)
        return {}


@dataclass(frozen=True, slots=True)
class VariantTask:
    """Makes a variant: the network, verified, exported, measured and ready to ship.

    Attributes:
        variant: Which.
        requires: The dense training, where that is a task.
        after: The variant at the looser target, where that is a task.
        resume: Whether to go on with what is in its folder.
    """

    variant: Variant
    requires: tuple[str, ...]
    after: tuple[str, ...]
    resume: bool

    @property
    def name(self) -> str:
        """The variant's."""
        return self.variant.name

    @property
    def devices(self) -> tuple[str, ...]:
        """The variant's."""
        return (self.variant.profile.name,)

    @property
    def needs(self) -> tuple[str, ...]:
        """The networks that it starts from and learns from, and its own folder.

        The folder holds what an interrupted start has left, and files of the user's, which are to come back.
        """
        variant = self.variant
        shared = [variant.dense_name, variant.answers_name, *([variant.looser] if variant.looser else [])]
        return (*map(shared_file, shared), *([variant.dense_int8] if variant.int8 else []), self.name)

    @property
    def makes(self) -> tuple[str, ...]:
        """Its folder, and what others take: the masked network, the dense one on 8 bits and its answers."""
        variant = self.variant
        shared = (shared_file(self.name), shared_file(variant.answers_name))
        return (self.name, *shared, *([variant.dense_int8] if variant.int8 else []))

    def run(self, root: Path, bench: Bench, observer: Observer) -> Mapping[str, Any]:
        """Returns the manifest's entry; see :meth:`hwprune.executors.base.Task.run`."""
        folder = root / self.name
        if not (self.resume and (folder / REPORT_FILE).is_file()):
            self._compress(root, bench, observer)
        lacks = None
        if self.variant.int8:
            try:
                dense = self._dense_on_8_bits(root, observer)
                observer.note("quantising the slim network and timing it against single precision")
                write_json(folder / INT8_FILE, add_quantized(folder, self.variant.profile, dense, bench))
            except HwpruneError as error:  # what was made in single precision is not lost for that
                lacks = error
        return self.variant.entry(folder, lacks)

    def _dense_on_8_bits(self, root: Path, observer: Observer) -> Path:
        """The folder of the dense network on 8 bits; made by the first variant of its model and device."""
        variant, settings = self.variant, self.variant.settings
        folder = root / variant.dense_int8
        if not (folder / DENSE_FACTS).is_file():
            observer.note("quantising the dense network")
            folder.mkdir(parents=True, exist_ok=True)
            source = folder / SINGLE_FILE
            export_dense(settings, root / shared_file(variant.dense_name), variant.profile, source)
            quantize_dense(source, settings.data, settings.train_images, variant.profile)
        return folder

    def _start(self, root: Path) -> tuple[Settings, Path | None, bool]:
        """What the run is asked to do, the network it starts from, and whether it goes on with one begun."""
        settings, start = self.variant.settings, None
        before = begun_with(root / self.name) if self.resume else None
        if self.variant.looser is not None:
            start = root / shared_file(self.variant.looser)
            # The looser variant failed, or had failed when this one began: from where it would have begun.
            if not start.is_file() or (before is not None and before.get("follows") is None):
                settings, start = replace(settings, follows=None), None
        # One that began from another network than there is now begins anew.
        return (
            settings,
            start,
            before is not None and before.get("follows") == settings.as_record()["follows"],
        )

    def _compress(self, root: Path, bench: Bench, observer: Observer) -> None:
        folder = root / self.name
        (root / SHARED_FOLDER).mkdir(parents=True, exist_ok=True)
        dense = root / shared_file(self.variant.dense_name)
        settings, start, begun = self._start(root)
        masked = None if settings.fine_tune is None else root / shared_file(self.name)
        if is_marked(folder):
            shutil.rmtree(folder / INT8_FOLDER, ignore_errors=True)  # of another run
        compress(
            settings,
            self.variant.profile,
            folder,
            observer,
            resume=begun,
            shared=Shared(dense, start, masked, root / shared_file(self.variant.answers_name)),
            bench=bench,
        )
