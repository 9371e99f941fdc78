"""The page about one run of ``prune``."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hwprune import charts
from hwprune.outcome import guessing_line, shortfall_line, surplus_line
from hwprune.page import Markup, bar, code, figure, figures, page, paragraph, small, table
from hwprune.targets import in_digits
from hwprune.train.schedule import BY_NORM, needs_pull

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
#: Columns of the history that are drawn, with their labels.
CURVES = (
    ("loss", "training loss"),
    ("accuracy", "test accuracy"),
    ("groups_alive", "groups alive"),
    ("predicted_us", "predicted latency (us)"),
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
                f"Seed {record['seed']}, {_epochs(record)}."
            )
        )
    ]
    if not charts.available():
        lead.append(paragraph(NO_CHARTS))
    sections = [
        (
            "Dense against slim, measured",
            [table(("", "dense", "slim", "slim / dense"), comparison_rows(record)), *_trade(record)],
        ),
        ("Predicted (an estimate) against measured", [_predictions(record), *_correction(record)]),
        ("Turns on the device", _turns(record)),
        ("What was pruned, and why", pruned(record)),
        ("What each layer's width costs", staircases(record, record["model"])),
        ("Training", curves(history, record["model"])),
        ("Slim equals masked", [_equality(record)]),
        ("How to reproduce", _reproduction(record)),
    ]
    return page(title, lead, sections)


def _epochs(record: Record) -> str:
    """How long the two networks were trained; given weights are not trained dense."""
    fine_tune = record.get("fine_tune") or record
    dense = 0 if record.get("weights") else record["epochs"]
    corrections = sum(turn.get("finished", False) for turn in record["turns"][:-1])
    more = f", and {corrections} more after it had missed its target" if corrections else ""
    return f"{dense} epochs dense and {fine_tune['epochs']} pruned{more}"


def _predictions(record: Record) -> Markup:
    rows = [
        (
            name,
            _number(record["predicted_us"][name], ".1f"),
            f"{record[name]['latency_us']['median']:.1f}",
            _number(record["prediction_error"][name], "+.1%"),
        )
        for name in ("dense", "slim")
    ]
    return table(("", "predicted (us)", "measured (us)", "error"), rows)


def _correction(record: Record) -> list[Markup]:
    """What the sums of rows were corrected by."""
    correction = record.get("correction")
    if correction is None:
        return []
    spilled = (
        f", and {correction['spilled_us']:.1f} us for each MiB of weights (at four bytes each) beyond "
        f"{correction['held_mib']:.2f}, which no longer stay in a cache"
        if correction["spilled_us"]
        else ""
    )
    return [
        paragraph(
            f"A prediction is {correction['factor']:.3f} times the sum of the rows, and "
            f"{correction['overhead_us']:.1f} us{spilled}."
        )
    ]


def _number(value: float | None, form: str) -> str:
    """A number as text, or that there is none: an operator without a price leaves a network without."""
    return "none" if value is None else format(value, form)


def _turns(record: Record) -> list[Markup]:
    keys = ("limit_us", "predicted_us", "measured_us", "allowed_us")
    rows = [
        (
            index,
            *(f"{turn[key]:.1f}" for key in keys),
            "finished" if turn.get("finished") else "chosen",
            "an earlier run" if turn.get("reused") else "this run",
        )
        for index, turn in enumerate(record["turns"], start=1)
    ]
    numbers = ("aimed at (us)", "predicted (us)", "measured (us)", "allowed (us)")
    header = ("turn", *numbers, "network", "measured by")
    shortfall, surplus, guessing = shortfall_line(record), surplus_line(record), guessing_line(record)
    return [
        *([table(header, rows)] if rows else []),
        *([paragraph(f"The target is missed: {shortfall}.")] if shortfall else []),
        *([paragraph(f"The slim network is {surplus}.")] if surplus else []),
        *([paragraph(f"Beware: {guessing}.")] if guessing else []),
    ]


def pruned(record: Record) -> list[Markup]:
    """What was pruned, layer by layer, and why."""
    groups, unit = record["groups"], record.get("granularity", "channel")
    why = paragraph(
        f"{groups['total'] - groups['kept']:,.0f} of {groups['total']:,.0f} groups ({unit}) left to reach "
        f"{record['target']['kind']} {record['target']['value']:g}: {_chosen(record)}, for what they cost."
    )
    rows = [
        (
            layer["name"],
            layer["width_before"],
            layer["width_after"],
            bar(layer["width_after"] / layer["width_before"]),
            _freed(layer),
            _why(layer),
            small(", ".join(name for name in layer["tied"] if name != layer["name"])),
        )
        for layer in record["layers"]
    ]
    header = ("layer", "before", "after", "", "frees, predicted (us)", "why", "cut together with")
    return [why, table(header, rows, f"Widths of {record['model']}")]


def _chosen(record: Record) -> str:
    """How those that left were chosen."""
    unit, penalty = record.get("granularity", "channel"), record["penalty"]
    if penalty in BY_NORM:
        return f"chosen by the penalty {penalty}, those with the smallest norms"
    if not record.get("fine_tune") or needs_pull(unit, penalty):
        return f"chosen while the penalty {penalty} pulled, those that the training could spare most easily"
    if record.get("reconstruct"):
        return "chosen in the trained network, those without which the layers that read them lose least"
    return "chosen in the trained network, those with the smallest norms"


def _why(layer: Record) -> str:
    """Why a layer has the width it has."""
    if layer["kept_whole_because"]:
        return f"kept whole: {layer['kept_whole_because']}"
    if layer.get("form"):
        return str(layer["form"])
    gone = layer["width_before"] - layer["width_after"]
    return f"{gone} were least worth their cost" if gone else "all are worth their cost"


def _freed(layer: Record) -> str:
    """By how much the network would be slower with the layer as it was, in microseconds; a prediction."""
    latency = dict(layer.get("staircase") or ())
    if not latency:
        return ""
    return f"{latency[layer['width_before']] - latency[layer['width_after']]:.1f}"


def staircases(record: Record, of: str) -> list[Markup]:
    """The staircase under the choice of every layer.

    Args:
        record: The contents of ``report.json``.
        of: The network; runs on one page differ in it.
    """
    layers = [layer for layer in record["layers"] if layer.get("staircase")]
    if not layers or not charts.available():
        return []
    caption = (
        "Predicted latency of the whole network over the width of each layer, in us (an estimate): every "
        "other layer stays at its final width; the dot is the width that was chosen."
    )
    return [figures([charts.staircase(layer, of) for layer in layers], caption)]


def _trade(record: Record) -> list[Markup]:
    """Accuracy against measured latency, dense as the reference."""
    if not charts.available():
        return []
    lines = [
        charts.Line(
            name, [record[name]["latency_us"]["median"]], [100 * record[name]["accuracy"]], labels=[name]
        )
        for name in ("dense", "slim")
    ]
    svg = charts.line_chart(
        lines, x_label="measured latency (us)", y_label="test accuracy (%)", title="Accuracy against latency"
    )
    return [figure(svg, "Medians, timed alternately in one run.")]


def curves(history: Sequence[Record], of: str) -> list[Markup]:
    """The training, epoch by epoch.

    Args:
        history: The rows of ``history.csv``.
        of: The network; runs on one page differ in it.
    """
    if not history or not charts.available():
        return []
    drawn = []
    for column, label in CURVES:
        if any(row[column] is None or math.isnan(row[column]) for row in history):
            continue  # nothing prices the network
        lines = [
            charts.Line(
                phase,
                [float(row["epoch"]) for row in history if row["phase"] == phase],
                [float(row[column]) for row in history if row["phase"] == phase],
            )
            for phase in dict.fromkeys(row["phase"] for row in history)
        ]
        title = f"{label} per epoch, {of}"
        drawn.append(charts.line_chart(lines, x_label="epoch", y_label=label, title=title, small=True))
    return [figures(drawn, "Epoch by epoch; dense training and pruning are counted separately.")]


def _equality(record: Record) -> Markup:
    gap = record["max_abs_difference"]
    rows = [("PyTorch", f"{gap['torch']:.1e}"), ("the runtime", f"{gap['runtime']:.1e}")]
    return table(("largest difference of an output in", ""), rows)


def _reproduction(record: Record) -> list[Markup]:
    facts = sorted({**record["environment"], **record["versions"]}.items())
    chained = []
    if record.get("follows"):
        chained = [
            paragraph(
                f"This network started from the pruned one at {target_option(record['follows'])}, not from "
                "the dense one: the command makes both. Where that one followed another, give its target too."
            )
        ]
    return [code(command_of(record)), *chained, table(("", ""), facts)]


def command_of(record: Record) -> str:
    """The command that the run can be repeated with, and the one whose network it started from."""
    looser = [record["follows"]] if record.get("follows") else []
    fine_tune = record.get("fine_tune")
    return " ".join(
        (
            "hwprune prune",
            *(f"--{key} {shlex.quote(record[key])}" for key in ("model", "data", "device")),
            *([f"--profiles {shlex.quote(record['profiles'])}"] if record.get("profiles") else []),
            *map(target_option, (*looser, record["target"])),
            training_options(record),
            *fine_tuning_options([record.get("fine_tune_before") or fine_tune, fine_tune]),
        )
    )


def fine_tuning_options(recipes: Sequence[Record | None]) -> list[str]:
    """The option that asks for these trainings from trained weights; none where they differ, as by default.

    Args:
        recipes: Of networks that one command makes; ``None`` for a start from scratch.

    >>> fine_tuning_options([{"epochs": 10}, {"epochs": 2}]), fine_tuning_options([None])
    ([], ['--from-scratch'])
    """
    epochs = {None if recipe is None else recipe["epochs"] for recipe in recipes}
    if len(epochs) > 1:
        return []
    return ["--from-scratch"] if epochs == {None} else [f"--fine-tune-epochs {epochs.pop()}"]


def target_label(target: Record) -> str:
    """A target in a word or two.

    >>> target_label({"kind": "latency_us", "value": 300.0}), target_label({"kind": "keep", "value": 0.3})
    ('300 us', 'keep 0.3')
    """
    forms = {"speedup": "{:g}x", "latency_us": "{:g} us", "groups": "{:g} groups"}
    return forms.get(target["kind"], "keep {:g}").format(target["value"])


def target_option(target: Record) -> str:
    """The option that asks for a target."""
    return f"--{target['kind'].replace('_', '-')} {in_digits(target['value'])}"


def training_options(record: Record) -> str:
    """The options that a run was trained with, but for what it started from; old reports know fewer."""
    recipe, distillation = record["recipe"], record.get("distillation")
    words = [
        f"--epochs {record['epochs']} --seed {record['seed']} --penalty {record['penalty']}",
        f"--batch-size {recipe['batch_size']} --learning-rate {recipe['learning_rate']:g}",
    ]
    if record.get("granularity"):  # what a device does by default is not told by its name
        words.append(f"--granularity {record['granularity']}")
    if record["train_images"]:
        words.append(f"--train-images {record['train_images']}")
    if record.get("weights"):
        words.append(f"--weights {shlex.quote(record['weights'])}")
    if distillation:
        words.append(f"--distill {distillation['weight']:g} --temperature {distillation['temperature']:g}")
    elif record.get("fine_tune"):  # which learns from the dense network by default
        words.append("--distill 0")
    if record.get("fine_tune"):  # which fits survivors by default; what old reports tell of was not fitted
        words.append(f"--reconstruct {record.get('reconstruct', 0)}")
    return " ".join(words)
