"""What a run came to: ``report.json``, ``history.csv`` and one self-contained page."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hwprune.compressor import Result
from hwprune.files import replacing, write_json, write_text


@dataclass(frozen=True, slots=True, eq=False)
class RunReport:
    """Everything known about one run.

    Attributes:
        settings: What was asked.
        seconds: Wall-clock time of the whole run.
        versions: Package versions.
        environment: Machine, runtime, precision and threads of the measurement.
        networks: ``dense`` and ``slim``: accuracy, latency_us, params, macs and file_bytes.
        result: The compression.
        runtime_gap: Slim in the runtime against masked in PyTorch.
        history: One row per epoch.
    """

    settings: Mapping[str, Any]
    seconds: float
    versions: Mapping[str, str]
    environment: Mapping[str, Any]
    networks: Mapping[str, Mapping[str, Any]]
    result: Result
    runtime_gap: float
    history: Sequence[Mapping[str, Any]]

    @property
    def speedup(self) -> float:
        """Measured dense median over slim median, timed alternately."""
        return float(self.networks["dense"]["latency_us"]["median"]) / float(
            self.networks["slim"]["latency_us"]["median"]
        )

    @property
    def target_met(self) -> bool:
        """Whether the measured network (or the number of groups) is within the target."""
        kind, value = self.settings["target"]["kind"], self.settings["target"]["value"]
        groups = self.result.report.groups
        match kind:
            case "speedup":
                return bool(self.speedup >= value)
            case "latency_us":
                return bool(self.networks["slim"]["latency_us"]["median"] <= value)
            case _:
                return bool(groups["kept"] <= groups["budget"])

    def as_record(self) -> dict[str, Any]:
        """The contents of ``report.json``."""
        report = self.result.report
        recipe = self.settings["recipe"]
        return {
            **{key: self.settings[key] for key in ("model", "data", "device", "target", "penalty")},
            "train_images": self.settings["train_images"],
            "seed": recipe["seed"],
            "epochs": recipe["epochs"],
            "recipe": recipe,
            "seconds": round(self.seconds, 2),
            "versions": dict(self.versions),
            "environment": dict(self.environment),
            "dense": dict(self.networks["dense"]),
            "slim": dict(self.networks["slim"]),
            "speedup": round(self.speedup, 4),
            "target_met": self.target_met,
            "predicted_us": report.predicted_us,
            "prediction_error": {
                name: predicted / self.networks[name]["latency_us"]["median"] - 1
                for name, predicted in report.predicted_us.items()
            },
            "groups": report.groups,
            "layers": self.result.plan.as_records(),
            "turns": [asdict(turn) for turn in report.turns],
            "max_abs_difference": {"torch": report.max_abs_difference, "runtime": self.runtime_gap},
        }


def write_report(folder: Path, report: RunReport) -> None:
    """Writes ``history.csv``, ``report.html`` and, last, ``report.json``, each atomically."""
    with replacing(folder / "history.csv") as temporary:
        pd.DataFrame(list(report.history)).to_csv(temporary, index=False)
    record = report.as_record()
    write_text(folder / "report.html", render_page(record))
    write_json(folder / "report.json", record)


#: Label, path into a network's record and format of every row of the comparison.
COMPARISON = (
    ("accuracy", ("accuracy",), "{:.2%}"),
    ("latency, median (us)", ("latency_us", "median"), "{:.1f}"),
    ("latency, p10 (us)", ("latency_us", "p10"), "{:.1f}"),
    ("latency, p90 (us)", ("latency_us", "p90"), "{:.1f}"),
    ("parameters", ("params",), "{:,}"),
    ("multiply-accumulates", ("macs",), "{:,}"),
    ("file (bytes)", ("file_bytes",), "{:,}"),
)


def comparison_rows(record: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Dense against slim: label, dense, slim and their ratio, as text."""
    rows = []
    for label, path, form in COMPARISON:
        values = []
        for name in ("dense", "slim"):
            value: Any = record[name]
            for key in path:
                value = value[key]
            values.append(value)
        ratio = f"{values[1] / values[0]:.2f}" if values[0] else ""
        rows.append((label, form.format(values[0]), form.format(values[1]), ratio))
    return rows


_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .3rem .8rem; border-bottom: 1px solid #8884; }
.bar { background: #8883; width: 12rem; height: .8rem; }
.bar > div { background: #2a7de1; height: 100%; }
@media print { body { margin: 0; } }
"""


def render_page(record: Mapping[str, Any]) -> str:
    """One self-contained HTML page about a run, readable without a network connection.

    Args:
        record: The contents of ``report.json``.
    """
    target = record["target"]
    title = f"{record['model']} on {record['data']} for {record['device']}"
    layers = [
        (
            layer["name"],
            layer["width_before"],
            layer["width_after"],
            _bar(layer["width_after"] / layer["width_before"]),
            layer["kept_whole_because"] or "",
        )
        for layer in record["layers"]
    ]
    predicted = [
        (
            name,
            f"{record['predicted_us'][name]:.1f}",
            f"{record[name]['latency_us']['median']:.1f}",
            f"{record['prediction_error'][name]:+.1%}",
        )
        for name in ("dense", "slim")
    ]
    turns = [
        (index, *(f"{turn[key]:.1f}" for key in ("limit_us", "predicted_us", "measured_us", "allowed_us")))
        for index, turn in enumerate(record["turns"], start=1)
    ]
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>Target: {html.escape(target['kind'])} {target['value']:g}. Measured speed-up: "
        f"<strong>{record['speedup']:.2f}</strong>. Seed {record['seed']}, {record['epochs']} epochs.</p>",
        _table(
            "Dense against slim, measured", ("", "dense", "slim", "slim / dense"), comparison_rows(record)
        ),
        _table(
            "Predicted (estimate) against measured",
            ("", "predicted (us)", "measured (us)", "error"),
            predicted,
        ),
        _table("Turns on the device (us)", ("turn", "aimed at", "predicted", "measured", "allowed"), turns),
        _table("Widths", ("layer", "before", "after", "", "kept whole because"), layers),
        _table("Environment", ("", ""), sorted(record["environment"].items())),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        + "".join(sections)
        + "</body></html>\n"
    )


class _Markup(str):
    """Text that is HTML already."""


def _bar(fraction: float) -> _Markup:
    return _Markup(
        f'<div class="bar" role="img" aria-label="{fraction:.0%} kept">'
        f'<div style="width:{fraction:.0%}"></div></div>'
    )


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{cell if isinstance(cell, _Markup) else html.escape(str(cell))}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return (
        f"<h2>{html.escape(caption)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
