"""The command ``hwprune prune``: the main job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from hwprune.cli.common import answer, profiles_option, told
from hwprune.cli.config import config_option
from hwprune.cli.progress import observing
from hwprune.cli.tensorboard import check_tensorboard, drawing
from hwprune.cli.training import Training, telling_how_to_resume, training_options
from hwprune.cli.variants import refuse_processes, run_grid
from hwprune.device.library import load_profile
from hwprune.executors.base import InProcess
from hwprune.outcome import guessing_line, shortfall_line, surplus_line
from hwprune.output_folder import MODEL_FILE, SINGLE_FILE
from hwprune.pipeline import compress
from hwprune.processes import in_all, joined
from hwprune.report import RunReport
from hwprune.run_page import comparison_rows
from hwprune.runtime.environment import local_profile
from hwprune.settings import Settings

#: Where a run goes that names no folder.
DEFAULT_OUT = "hwprune-run"


@click.command()
@click.option(
    "--model", default="resnet8", show_default=True, help="Built-in name or package.module:callable."
)
@click.option(
    "--data", default="digits", show_default=True, help="Data set: name, name:DIR or package.module:callable."
)
@click.option("--device", help="Profile name or folder; default: the one of this machine's CPU runtime.")
@profiles_option
@training_options
@config_option
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path),
    help="Write curves for TensorBoard here; of several targets, each in a folder of its own.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path(DEFAULT_OUT), show_default=True)
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in the output folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object and nothing else.")
@told
def prune(
    model: str,
    data: str,
    device: str | None,
    profiles: Path | None,
    training: Training,
    tensorboard: Path | None,
    out: Path,
    resume: bool,
    as_json: bool,
) -> None:
    """Train a network dense and pruned, and write the slim one that meets the target.

    With no option: a small residual network on the digits of scikit-learn, twice as fast on this CPU. A
    target may be given several times: the dense training is then shared, every network is fine-tuned from the
    one at the looser target, and each has a folder of its own.

    Under torchrun the images of every batch are shared among the processes; the result is the same.

    Example: hwprune prune --model resnet20 --data fashion-mnist --speedup 2 --epochs 5 --out run
    """
    if sum(map(bool, (training.speedups, training.latencies, training.fractions))) > 1:
        raise click.UsageError("give only one of --speedup, --latency-us and --keep")
    with joined():
        several = len(in_all(training.targets)) > 1
        profile = in_all(
            lambda: load_profile(device, profiles) if device is not None else local_profile(profiles)
        )
        name = device or profile.name
        if several:
            in_all(refuse_processes)
            grid = training.grid([model], data, {name: profile})
            named = None if profiles is None else str(profiles)
            run_grid(
                replace(grid, profiles=named),
                out,
                resume=resume,
                as_json=as_json,
                executor=_with_curves(tensorboard),
            )
            return
        console = Console(stderr=as_json, highlight=False, emoji=False)
        granularity = training.granularity or profile.granularity
        settings = in_all(lambda: _settings(model, data, name, training, granularity, profiles))
        with (
            telling_how_to_resume(),
            observing(console) as lines,
            drawing(lines, tensorboard) as observer,
        ):
            report = compress(settings, profile, out, observer, resume=resume)
    if report is None:  # the first of several processes tells
        return
    if as_json:
        answer(report.as_record())
    else:
        _print_report(console, report, out)


def _with_curves(tensorboard: Path | None) -> InProcess:
    """Makes one network after the other, with curves of each in a folder of its own."""
    if tensorboard is None:
        return InProcess()
    check_tensorboard()
    return InProcess(lambda task, observer: drawing(observer, tensorboard / task.name))


def _settings(
    model: str, data: str, device: str, training: Training, granularity: str, profiles: Path | None
) -> Settings:
    """What a run with one target is asked to do."""
    recipe, (target,) = training.recipe(data), training.targets()
    fine_tune = training.fine_tune(recipe)
    return Settings(
        model,
        data,
        device,
        target,
        recipe,
        training.penalty,
        training.train_images,
        granularity,
        None if training.weights is None else str(training.weights),
        fine_tune,
        distillation=training.distillation(fine_tune),
        reconstruct=training.reconstruction(fine_tune, granularity),
        profiles=None if profiles is None else str(profiles),
    )


def _print_report(console: Console, report: RunReport, out: Path) -> None:
    record = report.as_record()
    table = Table(box=None, pad_edge=False)
    for column in ("", "dense", "slim", "slim / dense"):
        table.add_column(column, justify="left" if not column else "right")
    for row in comparison_rows(record):
        table.add_row(*row)
    console.print(table)
    target, gap = record["target"], record["max_abs_difference"]
    console.print(
        f"measured speed-up {record['speedup']:.2f} (target: {target['kind']} {target['value']:g}), "
        f"{record['groups']['kept']} of {record['groups']['total']} groups kept, slim = masked within "
        f"{gap['torch']:.1e} in PyTorch and {gap['runtime']:.1e} in the runtime"
    )
    shortfall, surplus = shortfall_line(record), surplus_line(record)
    if shortfall:
        console.print(f"warning: the target is missed: {shortfall}", markup=False)
    if surplus:
        console.print(f"the slim network is {surplus}", markup=False)
    if guessing := guessing_line(record):
        console.print(f"warning: {guessing}", markup=False)
    for line in (*form_lines(record["layers"]), *unchanged_lines(record["layers"])):
        console.print(line, markup=False)
    precision = {"int8": "8 bits", "fp16": "half precision"}.get(record["environment"]["precision"])
    models = f"{MODEL_FILE} ({precision}), {SINGLE_FILE}" if precision else MODEL_FILE
    console.print(f"written to {out}/: {models}, slim/, report.json, report.html, history.csv")


def unchanged_lines(layers: Sequence[dict[str, Any]]) -> list[str]:
    """One line for every layer that had to keep its width, with the reason."""
    return [
        f"kept whole: {layer['name']} ({layer['width_before']} {layer['unit']}): "
        f"{layer['kept_whole_because']}"
        for layer in layers
        if layer["kept_whole_because"]
    ]


def form_lines(layers: Sequence[dict[str, Any]]) -> list[str]:
    """One line for every layer that may have got another form: what it became, and why."""
    return [
        f"{layer['name']} ({layer['width_after']} of {layer['width_before']} {layer['unit']}): "
        f"{layer['form']}"
        for layer in layers
        if layer["form"]
    ]
