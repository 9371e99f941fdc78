"""What an earlier start has left of variants: those that are whole are kept, the others are made anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hwprune.errors import ArtifactError
from hwprune.output_folder import (
    CHECKPOINTS,
    HISTORY_FILE,
    INT8_FILE,
    INT8_FOLDER,
    MODEL_FILE,
    PAGE_FILE,
    REPORT_FILE,
    SINGLE_FILE,
    SLIM_FOLDER,
)
from hwprune.report import read_json
from hwprune.shipping import file_hashes
from hwprune.surgery.structure import STRUCTURE_FILE, WEIGHTS_FILE
from hwprune.variant_tasks import Variant, begun_with
from hwprune.variants_page import MANIFEST_FILE

#: What every finished run has; only the run itself can make it.
_ESSENTIAL = (
    MODEL_FILE,
    HISTORY_FILE,
    f"{SLIM_FOLDER}/{STRUCTURE_FILE}",
    f"{SLIM_FOLDER}/{WEIGHTS_FILE}",
)
#: In which the variants of one folder may differ.
_OF_ONE_VARIANT = (
    *("model", "device", "target", "follows", "granularity", "weights"),
    *("profile_sha256", "weights_sha256"),
)

Entry = dict[str, Any]


def keep_whole(variants: Sequence[Variant], out: Path, notify: Callable[[str], None]) -> dict[str, Entry]:
    """The manifest's entries of the variants in a folder that need not be made.

    Of one whose files are not what the manifest lists, the report is removed: it is no longer finished.

    Args:
        variants: Those that are asked for.
        out: The folder.
        notify: Told what is not kept, and why.

    Returns:
        By name: first those that are asked for, then others that were made before.

    Raises:
        ArtifactError: If one was made with other settings.
    """
    listed, asked = _listed(out), {variant.name for variant in variants}
    others = {name: entry for name, entry in listed.items() if name not in asked}
    for variant in variants:
        _check_settings(out / variant.name, variant)
    for name in others:
        _check_settings(out / name, variants[0], but_for=_OF_ONE_VARIANT)
    kept = {
        **{variant.name: _kept(variant, listed.get(variant.name), out, notify) for variant in variants},
        **{name: _kept_other(entry, out, notify) for name, entry in others.items()},
    }
    return {name: entry for name, entry in kept.items() if entry is not None}


def keep_others(variants: Sequence[Variant], out: Path, notify: Callable[[str], None]) -> dict[str, Entry]:
    """The manifest's entries of variants that were made before and are not asked for now, by name.

    Args:
        variants: Those that are asked for.
        out: The folder.
        notify: Told of what is left out, and why.
    """
    asked, kept = {variant.name for variant in variants}, dict[str, Entry]()
    for name, listed in _listed(out).items():
        if name in asked:
            continue
        try:
            _check_settings(out / name, variants[0], but_for=_OF_ONE_VARIANT)
        except ArtifactError:
            notify(f"{name} is left out of the manifest: it was made with other settings")
            continue
        entry = _kept_other(listed, out, notify)
        if entry is not None:
            kept[name] = entry
    return kept


def _listed(out: Path) -> dict[str, Entry]:
    """The manifest's entries of variants that were made, by name."""
    if not (out / MANIFEST_FILE).is_file():
        return {}
    entries = read_json(out / MANIFEST_FILE, "hwprune variants")["variants"]
    return {
        entry["name"]: entry
        for entry in entries
        if isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and entry["name"] == Path(entry["name"]).name
        and isinstance(entry.get("files"), dict)
    }


def _kept(variant: Variant, listed: Entry | None, out: Path, notify: Callable[[str], None]) -> Entry | None:
    """The entry of a variant that is asked for; ``None`` where it is not whole."""
    folder = out / variant.name
    if not (folder / REPORT_FILE).is_file():
        return None
    # Left by a process that was killed right after it wrote the report.
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    found = file_hashes(folder)
    wanted = {} if listed is None else listed["files"]
    altered = _altered(wanted, found)
    of_the_run = sorted({name for name in altered if _is_of_the_run(name)} | ({*_ESSENTIAL} - found.keys()))
    if of_the_run:
        _make_anew(folder / REPORT_FILE, f"missing or altered: {', '.join(of_the_run)}", notify)
        return None
    quantised = [name for name in altered if _is_below(name, INT8_FOLDER)]
    if variant.int8 and quantised and INT8_FILE in found:
        _make_anew(folder / INT8_FILE, f"missing or altered: {', '.join(quantised)}", notify)
        return None
    if variant.int8 and INT8_FILE not in found:
        return None
    # Manifests of earlier versions do not say what a variant comes from.
    told = listed is not None and "settings" in listed and ("int8" in listed or not variant.int8)
    failed = listed is not None and listed.get("status") == "failed"
    if listed is None or not told or failed or _of_consequence(altered):
        return _entry(variant, folder, notify)
    return {**listed, "files": found}


def _entry(variant: Variant, folder: Path, notify: Callable[[str], None]) -> Entry | None:
    """The entry of a finished run, which is made ready to ship again; ``None`` where it is damaged."""
    try:
        return variant.entry(folder)
    except ArtifactError as error:
        _make_anew(folder / REPORT_FILE, str(error), notify)
        return None


def _kept_other(listed: Entry, out: Path, notify: Callable[[str], None]) -> Entry | None:
    """The entry of a variant that is not asked for; ``None`` where its files are not those listed."""
    found = file_hashes(out / listed["name"])
    altered = _of_consequence(_altered(listed["files"], found))
    if altered:
        notify(f"{listed['name']} is left out of the manifest: missing or altered: {', '.join(altered)}")
        return None
    return {**listed, "files": found}


def _make_anew(finished: Path, why: str, notify: Callable[[str], None]) -> None:
    """Removes the file that says that something is finished."""
    finished.unlink()
    notify(f"making {finished.parent} anew: {why}")


def _altered(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    return sorted(name for name, digest in wanted.items() if found.get(name) != digest)


def _of_consequence(altered: Iterable[str]) -> list[str]:
    """Of altered files those that make a difference: pages are written anew, exports are the user's."""
    return [
        name
        for name in altered
        if name != PAGE_FILE
        and ("/" not in name or _is_below(name, SLIM_FOLDER) or _is_below(name, INT8_FOLDER))
    ]


def _is_of_the_run(name: str) -> bool:
    return name in (MODEL_FILE, SINGLE_FILE, HISTORY_FILE, REPORT_FILE) or _is_below(name, SLIM_FOLDER)


def _is_below(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}/")


def _check_settings(folder: Path, variant: Variant, but_for: Sequence[str] = ("follows",)) -> None:
    """Raises where a variant was begun with other settings.

    Args:
        folder: The variant's.
        variant: What it is asked to be made with.
        but_for: What may differ. A variant whose looser one failed started from the dense network.
    """
    before = begun_with(folder)
    if before is None:
        return
    asked = json.loads(json.dumps(variant.settings.run_record(variant.profile)))
    changed = sorted(
        key
        for key in before.keys() | asked.keys()
        if key not in but_for and before.get(key) != asked.get(key)
    )
    if changed:
        raise ArtifactError(
            "a variant was made with other settings",
            where=folder,
            expected={key: before.get(key) for key in changed},
            got={key: asked.get(key) for key in changed},
            hint="give the same options, or start without --resume",
        )
