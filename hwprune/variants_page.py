"""The page about all variants of a folder."""

from __future__ import annotations

import html
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hwprune import charts
from hwprune.errors import ArtifactError
from hwprune.files import write_text
from hwprune.output_folder import PAGE_FILE, REPORT_FILE
from hwprune.page import Markup, code, figure, folded, page, paragraph, table
from hwprune.report import RunFolder, network_rows, read_json, told_where_damaged
from hwprune.run_page import NO_CHARTS, curves, pruned, staircases, target_option, training_options

MANIFEST_FILE = "manifest.json"


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
        return [entry for entry in self.record["variants"] if entry["status"] != "failed"]

    def networks(self) -> pd.DataFrame:
        """One row per variant and one per dense network and device."""
        with told_where_damaged(self.path / MANIFEST_FILE):
            return pd.DataFrame(
                [{**row, "status": entry["status"]} for entry in self.measured for row in network_rows(entry)]
            )

    def write_page(self) -> Path:
        """Writes ``report.html`` and returns its path."""
        path = self.path / PAGE_FILE
        with told_where_damaged(self.path / MANIFEST_FILE):
            content = render_variants(self)
        write_text(path, content)
        return path


def read_folder(path: Path) -> RunFolder | VariantsFolder:
    """What ``hwprune prune`` or ``hwprune variants`` left in a folder.

    Raises:
        ArtifactError: If neither did, or it is damaged.
    """
    if (path / MANIFEST_FILE).is_file():
        return VariantsFolder.read(path)
    return RunFolder.read(path)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that none other beats in both, by latency.

    Args:
        points: Latency and accuracy of each.

    >>> pareto_front([(3.0, 0.9), (1.0, 0.7), (2.0, 0.6), (2.5, 0.9)])
    [1, 3]
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda at: (points[at][0], -points[at][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def render_variants(folder: VariantsFolder) -> str:
    """One self-contained page about all variants; it links to the page of each."""
    entries = folder.record["variants"]
    devices = list(dict.fromkeys(entry["device"] for entry in entries))
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    title = f"{', '.join(models)}: {_counted(len(entries), 'variant')} for {_counted(len(devices), 'device')}"
    missed = [entry for entry in entries if entry["status"] != "done"]
    lead = [paragraph(f"{len(entries) - len(missed)} of {len(entries)} variants meet their measured target.")]
    if not charts.available():
        lead.append(paragraph(NO_CHARTS))
    sections: list[tuple[str, Sequence[object]]] = [
        ("Variants", [_overview(entries)]),
        *((("On 8 bits", [_on_8_bits(entries)]),) if any("int8" in entry for entry in entries) else ()),
        *((f"Accuracy against latency: {device}", _fronts(folder, device)) for device in devices),
        ("Predicted against measured", _predictions(folder)),
        ("What was missed, and why", _misses(missed)),
        ("What was pruned, and why", [_details(folder, entry) for entry in folder.measured]),
        (
            "How to reproduce",
            [*_commands(folder), table(("", ""), sorted(folder.record["versions"].items()))],
        ),
    ]
    return page(title, lead, sections)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _overview(entries: Sequence[Mapping[str, Any]]) -> Markup:
    rows = []
    for entry in entries:
        target = f"{entry['target']['kind']} {entry['target']['value']:g}"
        link = Markup(f'<a href="{html.escape(entry["name"])}/{PAGE_FILE}">{html.escape(entry["model"])}</a>')
        if entry["status"] == "failed":
            rows.append((entry["model"], entry["device"], target, "failed", "", "", "", "", ""))
            continue
        dense, slim = entry["dense"], entry["slim"]
        rows.append(
            (
                link,
                entry["device"],
                target,
                "met" if entry["status"] == "done" else "MISSED",
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


def _on_8_bits(entries: Sequence[Mapping[str, Any]]) -> Markup:
    """Every slim network against the quantised one, timed alternately in its runtime."""
    rows = [
        (
            entry["name"],
            f"{entry['int8']['accuracy_fp32']:.2%}",
            f"{entry['int8']['accuracy']:.2%}",
            f"{entry['int8']['latency_us_fp32']['median']:.1f}",
            f"{entry['int8']['latency_us']['median']:.1f}",
            f"{entry['int8']['speedup_over_slim']:.2f}",
        )
        for entry in entries
        if "int8" in entry
    ]
    header = ("variant", "accuracy, fp32", "accuracy, int8", "slim fp32 (us)", "slim int8 (us)", "speed-up")
    return table(header, rows)


def _fronts(folder: VariantsFolder, device: str) -> list[Markup]:
    entries = [entry for entry in folder.measured if entry["device"] == device]
    if not entries or not charts.available():
        return []
    points = [_place(entry[name]) for entry in entries for name in ("dense", "slim", "int8") if name in entry]
    front = pareto_front(points)
    lines = [
        charts.Line(
            "Pareto front", [points[at][0] for at in front], [points[at][1] for at in front], ringed=True
        ),
        *_lines(entries),
    ]
    svg = charts.line_chart(
        lines, x_label="measured latency (us)", y_label="test accuracy (%)", title=f"Accuracy on {device}"
    )
    return [figure(svg, "Labels are targets; dense networks are the reference.")]


def _lines(entries: Sequence[Mapping[str, Any]]) -> list[charts.Line]:
    """The networks of every model, and apart those on 8 bits."""
    lines = []
    for model in dict.fromkeys(entry["model"] for entry in entries):
        of_model = [entry for entry in entries if entry["model"] == model]
        dense = of_model[0]["dense"]
        lines.append(
            charts.Line(
                model,
                [
                    dense["latency_us"]["median"],
                    *(entry["slim"]["latency_us"]["median"] for entry in of_model),
                ],
                [100 * dense["accuracy"], *(100 * entry["slim"]["accuracy"] for entry in of_model)],
                joined=False,
                labels=["dense", *(f"{entry['target']['value']:g}" for entry in of_model)],
            )
        )
        quantised = [entry for entry in of_model if "int8" in entry]
        if quantised:
            latencies, accuracies = zip(*(_place(entry["int8"]) for entry in quantised), strict=True)
            labels = [f"{entry['target']['value']:g}" for entry in quantised]
            lines.append(charts.Line(f"{model}, int8", latencies, accuracies, joined=False, labels=labels))
    return lines


def _place(network: Mapping[str, Any]) -> tuple[float, float]:
    """Where a network stands: latency in microseconds and accuracy in percent."""
    return network["latency_us"]["median"], 100 * network["accuracy"]


def _predictions(folder: VariantsFolder) -> list[Markup]:
    if not folder.measured or not charts.available():
        return []
    priced = [entry for entry in folder.measured if None not in entry["predicted_us"].values()]
    if not priced:
        return []
    lines = [
        charts.Line(
            device,
            [e["predicted_us"][n] for e in priced for n in ("dense", "slim") if e["device"] == device],
            [
                e[n]["latency_us"]["median"]
                for e in priced
                for n in ("dense", "slim")
                if e["device"] == device
            ],
        )
        for device in dict.fromkeys(entry["device"] for entry in priced)
    ]
    svg = charts.diagonal_chart(
        lines, x_label="predicted (us)", y_label="measured (us)", title="Predicted against measured"
    )
    return [figure(svg, "Predictions are estimates from the devices' tables; on the line they are right.")]


def _details(folder: VariantsFolder, entry: Mapping[str, Any]) -> Markup:
    """Widths, staircases and training of one variant, to unfold."""
    run = RunFolder.read(folder.path / entry["name"])
    with told_where_damaged(run.path / REPORT_FILE):
        content = [
            *pruned(run.record),
            *staircases(run.record, entry["name"]),
            *curves(run.history, entry["name"]),
        ]
    return folded(f"{entry['name']}: {entry['speedup']:.2f} times as fast", content)


def _misses(missed: Sequence[Mapping[str, Any]]) -> list[Markup]:
    if not missed:
        return []
    rows = [
        (entry["name"], entry.get("error") or f"measured speed-up {entry['speedup']:.2f}") for entry in missed
    ]
    return [table(("variant", "why"), rows)]


def _commands(folder: VariantsFolder) -> list[Markup]:
    """The command that made the variants, from what they were made with."""
    if not folder.measured:
        return []
    entries = folder.record["variants"]
    records = [RunFolder.read(folder.path / entry["name"]).record for entry in folder.measured]
    record = dict(records[0])
    if len({other.get("granularity") for other in records}) > 1:  # nobody asked: each device has its own
        record.pop("granularity")
    words = ["hwprune variants"]
    for key in ("model", "device"):
        words += [f"--{key} {shlex.quote(name)}" for name in dict.fromkeys(entry[key] for entry in entries)]
    words += [
        f"--data {shlex.quote(record['data'])}",
        *dict.fromkeys(target_option(entry["target"]) for entry in entries),
    ]
    start = record.get("fine_tune")
    with told_where_damaged(folder.path / folder.measured[0]["name"] / REPORT_FILE):
        words.append(training_options(record))
    words.append(f"--fine-tune-epochs {start['epochs']}" if start else "--from-scratch")
    if any("int8" in entry for entry in entries):
        words.append("--int8")
    return [code(" ".join(words))]
