"""The page about one run of ``prune``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hwprune import charts
from hwprune.page import Markup, bar, code, figure, page, paragraph, table

Record = Mapping[str, Any]

#: Label, path into a network's record and format of every row of the comparison.
COMPARISON = (
    ("accuracy", ("accuracy",), "{:.2%}"),
    ("accuracy in single precision", ("accuracy_fp32",), "{:.2%}"),
    ("latency, median (us)", ("latency_us", "median"), "{:.1f}"),
    ("latency, p10 (us)", ("latency_us", "p10"), "{:.1f}"),
    ("latency, p90 (us)", ("latency_us", "p90"), "{:.1f}"),
    ("parameters", ("params",), "{:,}"),
    ("multiply-accumulates", ("macs",), "{:,}"),
    ("file (bytes)", ("file_bytes",), "{:,}"),
)
NO_CHARTS = "Charts need matplotlib: pip install 'hwprune[report]', then hwprune report DIR."


def comparison_rows(record: Record) -> list[tuple[str, str, str, str]]:
    """Dense against slim: label, dense, slim and their ratio, as text."""
    rows = []
    for label, path, form in COMPARISON:
        if path[0] not in record["dense"]:  # only a device of 8 bits has two accuracies
            continue
        values = []
        for name in ("dense", "slim"):
            value: Any = record[name]
            for key in path:
                value = value[key]
            values.append(value)
        ratio = f"{values[1] / values[0]:.2f}" if values[0] else ""
        rows.append((label, form.format(values[0]), form.format(values[1]), ratio))
    return rows


def render_run(record: Record, history: Sequence[Record]) -> str:
    """One self-contained page about a run.

    Args:
        record: The contents of ``report.json``.
        history: The rows of ``history.csv``.
    """
    title = f"{record['model']} on {record['data']} for {record['device']}"
    verdict = "met" if record["target_met"] else "MISSED"
    lead = [
        paragraph(
            Markup(
                f"Target: {record['target']['kind']} {record['target']['value']:g}, {verdict}. "
                f"Measured speed-up: <strong>{record['speedup']:.2f}</strong>. "
                f"Seed {record['seed']}, {record['epochs']} epochs dense and as many pruned."
            )
        )
    ]
    if not charts.available():
        lead.append(paragraph(NO_CHARTS))
    sections = [
        (
            "Dense against slim, measured",
            [table(("", "dense", "slim", "slim / dense"), comparison_rows(record))],
        ),
        ("Predicted (an estimate) against measured", [_predictions(record)]),
        ("Turns on the device", _turns(record)),
        ("Widths", [_widths(record)]),
        ("What each layer's width costs", _staircases(record)),
        ("Training", _curves(history)),
        ("Slim equals masked", [_equality(record)]),
        ("How to reproduce", _reproduction(record)),
    ]
    return page(title, lead, sections)


def _predictions(record: Record) -> Markup:
    rows = [
        (
            name,
            f"{record['predicted_us'][name]:.1f}",
            f"{record[name]['latency_us']['median']:.1f}",
            f"{record['prediction_error'][name]:+.1%}",
        )
        for name in ("dense", "slim")
    ]
    return table(("", "predicted (us)", "measured (us)", "error"), rows)


def _turns(record: Record) -> list[Markup]:
    keys = ("limit_us", "predicted_us", "measured_us", "allowed_us")
    rows = [
        (index, *(f"{turn[key]:.1f}" for key in keys)) for index, turn in enumerate(record["turns"], start=1)
    ]
    if not rows:
        return []
    header = ("turn", "aimed at (us)", "predicted (us)", "measured (us)", "allowed (us)")
    return [table(header, rows)]


def _widths(record: Record) -> Markup:
    rows = [
        (
            layer["name"],
            layer["width_before"],
            layer["width_after"],
            bar(layer["width_after"] / layer["width_before"]),
            ", ".join(name for name in layer["tied"] if name != layer["name"]),
            layer["kept_whole_because"] or "",
        )
        for layer in record["layers"]
    ]
    return table(("layer", "before", "after", "", "cut together with", "kept whole because"), rows)


def _staircases(record: Record) -> list[Markup]:
    layers = [layer for layer in record["layers"] if layer.get("staircase")]
    if not layers or not charts.available():
        return []
    caption = "Estimates: every other layer stays at its final width; the dot is the width that was chosen."
    return [figure(charts.staircases(layers), caption)]


def _curves(history: Sequence[Record]) -> list[Markup]:
    if not history or not charts.available():
        return []
    drawn = []
    for column, label in (
        ("loss", "training loss"),
        ("accuracy", "test accuracy"),
        ("groups_alive", "groups alive"),
        ("predicted_us", "predicted latency (us)"),
    ):
        lines = [
            charts.Line(
                phase,
                [float(row["epoch"]) for row in history if row["phase"] == phase],
                [float(row[column]) for row in history if row["phase"] == phase],
            )
            for phase in dict.fromkeys(row["phase"] for row in history)
        ]
        drawn.append(
            figure(
                charts.line_chart(lines, x_label="epoch", y_label=label, title=label), f"{label} per epoch"
            )
        )
    return drawn


def _equality(record: Record) -> Markup:
    gap = record["max_abs_difference"]
    rows = [("PyTorch", f"{gap['torch']:.1e}"), ("the runtime", f"{gap['runtime']:.1e}")]
    return table(("largest difference of an output in", ""), rows)


def _reproduction(record: Record) -> list[Markup]:
    facts = sorted({**record["environment"], **record["versions"]}.items())
    return [code(command_of(record)), table(("", ""), facts)]


def command_of(record: Record) -> str:
    """The command that the run can be repeated with."""
    recipe, target = record["recipe"], record["target"]
    option = f"--{target['kind'].replace('_', '-')} {target['value']:g}"
    words = [
        f"hwprune prune --model {record['model']} --data {record['data']} --device {record['device']}",
        f"{option} --epochs {record['epochs']} --seed {record['seed']} --penalty {record['penalty']}",
        f"--batch-size {recipe['batch_size']} --learning-rate {recipe['learning_rate']:g}",
    ]
    if record["train_images"]:
        words.append(f"--train-images {record['train_images']}")
    return " ".join(words)
