"""The page about all variants of a folder."""

from __future__ import annotations

import html
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hwprune import charts
from hwprune.errors import ArtifactError
from hwprune.files import write_text
from hwprune.measured_on import measured_rows, stand_in_for, stand_in_lines
from hwprune.outcome import shortfall_line
from hwprune.output_folder import PAGE_FILE, REPORT_FILE
from hwprune.page import Markup, code, folded, page, paragraph, table
from hwprune.report import RunFolder, network_rows, read_json, told_where_damaged
from hwprune.run_page import (
    NO_CHARTS,
    curves,
    fine_tuning_options,
    pruned,
    staircases,
    target_label,
    target_option,
    training_options,
)
from hwprune.variants_charts import accuracy_over_latency, predicted_against_measured

MANIFEST_FILE = "manifest.json"
#: What a manifest says has become of a variant, and the page.
STATUS = {
    "done": "met",
    "missed": "MISSED",
    "unreachable": "out of reach",
    "failed": "failed",
    "pending": "not made yet",
}
#: Of those, the ones of variants that lack nothing.
MADE = ("done", "missed")


@dataclass(frozen=True, slots=True, eq=False)
class VariantsFolder:
    """What ``hwprune variants`` left, read back.

    Attributes:
        path: The folder.
        record: The contents of ``manifest.json``.
    """

    path: Path
    record: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> VariantsFolder:
        """Reads the manifest.

        Raises:
            ArtifactError: If it is missing or damaged.
        """
        record = read_json(path / MANIFEST_FILE, "hwprune variants")
        if not isinstance(record.get("variants"), list):
            raise ArtifactError("the manifest lists no variants", where=path / MANIFEST_FILE)
        return cls(path, record)

    @property
    def measured(self) -> list[Mapping[str, Any]]:
        """The variants that were finished."""
        return [entry for entry in self.record["variants"] if _measured(entry)]

    def networks(self) -> pd.DataFrame:
        """One row per variant, and one per dense network and device; of a variant on 8 bits a further one."""
        with told_where_damaged(self.path / MANIFEST_FILE):
            rows = list(_rows(self.record["variants"]))
        # A variant that was not made has few columns, and may be the first.
        longest_first = sorted(rows, key=len, reverse=True)
        return pd.DataFrame(rows, columns=list(dict.fromkeys(key for row in longest_first for key in row)))

    def write_page(self) -> Path:
        """Writes ``report.html`` and returns its path."""
        path = self.path / PAGE_FILE
        with told_where_damaged(self.path / MANIFEST_FILE):
            content = render_variants(self)
        write_text(path, content)
        return path


def _measured(entry: Mapping[str, Any]) -> bool:
    """Whether a variant was made and measured, though it may lack something else."""
    return entry["status"] in MADE or "slim" in entry


def _meets(entry: Mapping[str, Any]) -> bool:
    """Whether a variant was made as it was asked for, though it may lack something else."""
    return entry["status"] == "done" or (
        _measured(entry) and "reason" not in entry and entry["status"] == "failed"
    )


def why_not(entry: Mapping[str, Any]) -> str:
    """Why a variant does not meet its target; nothing where it does, or is not made yet."""
    if entry["status"] == "failed":
        return "; ".join(str(entry[key]) for key in ("error", "reason") if key in entry)
    if entry["status"] == "unreachable":
        return str(entry["reason"])
    if entry["status"] != "missed":
        return ""
    # Manifests of older versions give no reason.
    return entry.get("reason") or shortfall_line({**entry, "target_met": False, "turns": []}) or ""


def _rows(entries: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of the table of networks; a dense one is told with the first variant that was timed against it."""
    told = set()
    for entry in entries:
        outcome = {"status": entry["status"], "reason": why_not(entry)}
        if not _measured(entry):
            target = {"target": entry["target"]["kind"], "value": entry["target"]["value"]}
            yield {**{key: entry[key] for key in ("model", "data", "device")}, **target, **outcome}
            continue
        for row in network_rows(entry):
            dense_us = entry["dense"]["latency_us"]["median"]
            row |= {"dense_latency_us_median": dense_us, "stand_in_for": stand_in_for(entry)}
            if row["network"] != "dense":
                yield {**row, **outcome}
            elif (entry["model"], entry["device"]) not in told:
                told.add((entry["model"], entry["device"]))
                yield {**row, "target": None, "value": None, "status": "", "reason": ""}


def read_folder(path: Path) -> RunFolder | VariantsFolder:
    """What ``hwprune prune`` or ``hwprune variants`` left in a folder.

    Raises:
        ArtifactError: If neither did, or it is damaged.
    """
    if (path / MANIFEST_FILE).is_file():
        return VariantsFolder.read(path)
    return RunFolder.read(path)


def render_variants(folder: VariantsFolder) -> str:
    """One self-contained page about all variants; it links to the page of each."""
    entries = folder.record["variants"]
    devices = list(dict.fromkeys(entry["device"] for entry in entries))
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    title = f"{', '.join(models)}: {_counted(len(entries), 'variant')} for {_counted(len(devices), 'device')}"
    lead = [paragraph(line) for line in (*_verdict(entries), *stand_in_lines(folder.measured))]
    if not charts.available():
        lead.append(paragraph(NO_CHARTS))
    sections: list[tuple[str, Sequence[object]]] = [
        ("Variants", [_overview(entries)]),
        ("Measured on", _measured_on(folder.measured)),
        *((("On 8 bits", [_on_8_bits(entries)]),) if any("int8" in entry for entry in entries) else ()),
        *(
            (f"Accuracy against latency: {device}", accuracy_over_latency(folder.measured, device))
            for device in devices
        ),
        ("Predicted against measured", predicted_against_measured(folder.measured)),
        ("What was missed, and why", _misses(entries)),
        ("What was pruned, and why", [_details(folder, entry) for entry in folder.measured]),
        (
            "How to reproduce",
            [*_commands(entries), table(("", ""), sorted(folder.record["versions"].items()))],
        ),
    ]
    return page(title, lead, sections)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _verdict(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How many variants came out as they were asked for; a number of groups is no measured target."""
    timed = [entry for entry in entries if entry["target"]["kind"] in ("speedup", "latency_us")]
    others = [entry for entry in entries if entry not in timed]
    if timed:
        met = sum(_meets(entry) for entry in timed)
        yield f"{met} of {len(timed)} variants with a latency as their target meet it, as measured."
    if others:
        met = sum(_meets(entry) for entry in others)
        yield f"{met} of {len(others)} variants with a number of groups as their target keep to it."
    pending = sum(entry["status"] == "pending" for entry in entries)
    if pending:
        yield f"{len(entries) - pending} of {len(entries)} made; the same command with --resume goes on."


def _overview(entries: Sequence[Mapping[str, Any]]) -> Markup:
    rows = []
    for entry in entries:
        outcome = (entry["device"], target_label(entry["target"]), STATUS[entry["status"]])
        if not _measured(entry):
            rows.append((entry["model"], *outcome, "", "", "", "", ""))
            continue
        dense, slim = entry["dense"], entry["slim"]
        rows.append(
            (
                Markup(f'<a href="#{_place(entry)}">{html.escape(entry["model"])}</a>'),
                *outcome,
                f"{entry['speedup']:.2f}",
                f"{dense['latency_us']['median']:.1f}",
                f"{slim['latency_us']['median']:.1f}",
                f"{dense['accuracy']:.2%}",
                f"{slim['accuracy']:.2%}",
            )
        )
    header = (
        "model", "device", "target", "", "speed-up", "dense (us)", "slim (us)", "dense accuracy",
        "slim accuracy",
    )  # fmt: skip
    return table(header, rows)


def _place(entry: Mapping[str, Any]) -> str:
    """Where on the page the details of a variant are."""
    return html.escape(f"variant-{entry['name']}")


def _measured_on(entries: Sequence[Mapping[str, Any]]) -> list[Markup]:
    if not entries:
        return []
    header = ("device", "its hardware", "measured on", "runtime", "precision", "threads", "batch", "date")
    return [table(header, measured_rows(entries))]


def _on_8_bits(entries: Sequence[Mapping[str, Any]]) -> Markup:
    """Dense and slim in both precisions: of every variant, timed alternately in its runtime."""
    rows = [row for entry in entries if "int8" in entry for row in _in_both(entry["name"], entry["int8"])]
    return table(("variant", "network", "test accuracy", "latency (us)", "speed-up"), rows)


def _in_both(name: str, int8: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows of a variant; speed-ups are over the first. Older manifests have none of the dense one."""
    networks = [("dense", int8["dense"])] if "dense" in int8 else []
    timed = [
        (f"{network}, {precision}", told[f"accuracy{ending}"], told[f"latency_us{ending}"]["median"])
        for network, told in [*networks, ("slim", int8)]
        for precision, ending in (("fp32", "_fp32"), ("int8", ""))
    ]
    return [
        (name, network, f"{accuracy:.2%}", f"{latency_us:.1f}", f"{timed[0][2] / latency_us:.2f}")
        for network, accuracy, latency_us in timed
    ]


def _details(folder: VariantsFolder, entry: Mapping[str, Any]) -> Markup:
    """Widths, staircases and training of one variant, to unfold."""
    try:
        run = RunFolder.read(folder.path / entry["name"])
    except ArtifactError as error:  # taken away to be shipped, say: the manifest still knows its numbers
        told = f"Its folder is not beside this page as it was: {html.escape(error.what)}."
        content = [Markup(f'<p id="{_place(entry)}">{told}</p>')]
        return folded(f"{entry['name']}: {entry['speedup']:.2f} times as fast", content)
    # Inside what is folded: who follows a link to it finds it unfolded.
    beside = Markup(
        f'<p id="{_place(entry)}">In the folder beside this page: '
        f'<a href="{html.escape(entry["name"])}/{PAGE_FILE}">all about this variant</a>.</p>'
    )
    with told_where_damaged(run.path / REPORT_FILE):
        content = [
            beside,
            *pruned(run.record),
            *staircases(run.record, entry["name"]),
            *curves(run.history, entry["name"]),
        ]
    return folded(f"{entry['name']}: {entry['speedup']:.2f} times as fast", content)


def _misses(entries: Sequence[Mapping[str, Any]]) -> list[Markup]:
    rows = [(entry["name"], STATUS[entry["status"]], why) for entry in entries if (why := why_not(entry))]
    rows += [(entry["name"], "", note) for entry in entries for note in entry.get("notes", ())]
    return [table(("variant", "", "why"), rows)] if rows else []


def _commands(entries: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """The command that makes the variants; nothing where an older version has not noted their settings."""
    if not entries or not all("settings" in entry for entry in entries):
        return []
    settings = [dict(entry["settings"]) for entry in entries]
    asked = settings[0]
    if len({each["granularity"] for each in settings}) > 1:  # nobody asked: each device has its own
        del asked["granularity"]
    models = dict.fromkeys(entry["model"] for entry in entries)
    words = ["hwprune variants", *(f"--model {shlex.quote(name)}" for name in models)]
    words += [f"--device {shlex.quote(name)}" for name in dict.fromkeys(each["device"] for each in settings)]
    if asked["profiles"]:
        words.append(f"--profiles {shlex.quote(asked['profiles'])}")
    words += [
        f"--data {shlex.quote(entries[0]['data'])}",
        *dict.fromkeys(target_option(entry["target"]) for entry in entries),
        training_options(asked),
        *fine_tuning_options([each["fine_tune"] for each in settings]),
    ]
    if any(each["int8"] for each in settings):  # a runtime without 8 bits leaves it out
        words.append("--int8")
    return [code(" ".join(words))]
