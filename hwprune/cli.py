"""The command line: parse, call the pipeline, print."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hwprune.device.profile import DeviceProfile, find_profiles, load_profile
from hwprune.errors import HwpruneError
from hwprune.penalties import penalty_names
from hwprune.pipeline import Settings, compress
from hwprune.report import RunReport, comparison_rows
from hwprune.runtime.environment import local_profile
from hwprune.runtime.timing import measure
from hwprune.targets import Keep, LatencyUs, Speedup, Target
from hwprune.train.loop import Recipe

INTERRUPTED = 130
#: Where a run goes that names no folder.
DEFAULT_OUT = "hwprune-run"
#: Epochs where none are asked for: the embedded default is small, everything else is not.
DEFAULT_EPOCHS, DIGITS_EPOCHS = 10, 16
DEFAULT_BATCH, DIGITS_BATCH = 128, 32

Arguments = ParamSpec("Arguments")


def told(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Tells every error a user can cause in one message on stderr and exits with 1."""

    @wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except HwpruneError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(1)
        except OSError as error:  # a full disk, a vanished folder
            click.echo(f"Error: {error.strerror or error} ({error.filename or 'file system'})", err=True)
            sys.exit(1)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hwprune")
def main() -> None:
    """Make a PyTorch network smaller until it measurably meets a latency target on a device.

    Example: hwprune prune --model resnet20 --data fashion-mnist --speedup 2
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


def profiles_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option that names a folder of profiles."""
    return click.option(
        "--profiles", type=click.Path(path_type=Path), help="Look for profiles in this folder first."
    )(command)


@main.command()
@click.argument("name", required=False)
@profiles_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@told
def devices(name: str | None, profiles: Path | None, as_json: bool) -> None:
    """List the device profiles, or show one in full.

    Example: hwprune devices x86-avx512-ort
    """
    if name is not None:
        profile = load_profile(name, profiles)
        record = profile_record(profile)
        click.echo(json.dumps(record, indent=2) if as_json else _indented(record))
        return
    found = find_profiles(profiles)
    if as_json:
        click.echo(json.dumps({"devices": [profile_record(profile) for profile in found]}, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "hardware", "runtime", "precision", "granularity", "measured"):
        table.add_column(column, overflow="fold")
    for profile in found:
        runtime, hardware = profile.runtime, profile.hardware
        table.add_row(
            profile.name,
            hardware.model or f"any {hardware.isa}",
            f"{runtime.kind}, {runtime.threads} thread{'s' if runtime.threads > 1 else ''}",
            runtime.precision,
            ", ".join(dict.fromkeys(rule.granularity for rule in profile.rules)),
            profile.provenance.date or f"no ({profile.provenance.source})",
        )
    Console().print(table)


def profile_record(profile: DeviceProfile) -> dict[str, Any]:
    """A profile as JSON, with the size of its table."""
    record = profile.model_dump(mode="json", by_alias=True, exclude_none=True)
    rows = list(profile.table) if profile.table is not None else []
    record["table"] = {"rows": len(rows), "operators": sorted({row.operator.kind for row in rows})}
    return record


def _indented(record: dict[str, Any], depth: int = 0) -> str:
    lines = []
    for key, value in record.items():
        pad = "  " * depth
        if isinstance(value, dict):
            lines += [f"{pad}{key}:", _indented(value, depth + 1)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines += [f"{pad}{key}:"] + [
                f"{pad}  - " + ", ".join(f"{name} {item}" for name, item in entry.items()) for entry in value
            ]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{pad}{key}: {shown}")
    return "\n".join(line for line in lines if line)


@main.command("measure")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--device", help="Profile whose runtime, threads and batch to use; default: this machine's.")
@profiles_option
@click.option("--runs", type=click.IntRange(min=1), help="Timed runs; default: until the median is certain.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@told
def measure_command(
    file: Path, device: str | None, profiles: Path | None, runs: int | None, as_json: bool
) -> None:
    """Time an ONNX file on this machine.

    Example: hwprune measure hwprune-run/model.onnx --device x86-avx512-ort
    """
    profile = load_profile(device, profiles) if device else local_profile(profiles)
    timing = measure(file, profile, runs)
    if as_json:
        click.echo(json.dumps({**asdict(timing), "environment": dict(timing.environment)}, indent=2))
        return
    click.echo(
        f"{timing.median_us:.1f} us median, {timing.p10_us:.1f} p10, {timing.p90_us:.1f} p90, "
        f"{timing.runs} runs"
    )
    click.echo(", ".join(f"{name} {value}" for name, value in timing.environment.items()))


@main.command()
@click.option(
    "--model", default="resnet8", show_default=True, help="Built-in name or package.module:callable."
)
@click.option(
    "--data", default="digits", show_default=True, help="Data set: name, name:DIR or package.module:callable."
)
@click.option("--device", help="Profile name or folder; default: the one of this machine's CPU runtime.")
@profiles_option
@click.option("--speedup", type=float, help="Target: this many times faster, measured. Default: 2.")
@click.option("--latency-us", type=float, help="Target: at most so many microseconds, measured.")
@click.option("--keep", type=float, help="Target: this fraction of the groups, rounded down.")
@click.option("--epochs", type=int, help=f"Default: {DEFAULT_EPOCHS}, for the digits {DIGITS_EPOCHS}.")
@click.option("--batch-size", type=int, help=f"Default: {DEFAULT_BATCH}, for the digits {DIGITS_BATCH}.")
@click.option("--learning-rate", type=float, default=0.1, show_default=True, help="At its peak.")
@click.option("--train-images", type=int, help="Train on the first so many images only.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--penalty", type=click.Choice(penalty_names()), default="envelope", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path(DEFAULT_OUT), show_default=True)
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in the output folder.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object and nothing else.")
@told
def prune(
    model: str,
    data: str,
    device: str | None,
    profiles: Path | None,
    speedup: float | None,
    latency_us: float | None,
    keep: float | None,
    epochs: int | None,
    batch_size: int | None,
    learning_rate: float,
    train_images: int | None,
    seed: int,
    penalty: str,
    out: Path,
    resume: bool,
    as_json: bool,
) -> None:
    """Train a network dense and pruned, and write the slim one that meets the target.

    With no option: a small residual network on the digits of scikit-learn, twice as fast on this CPU.

    Example: hwprune prune --model resnet20 --data fashion-mnist --speedup 2 --epochs 5 --out run
    """
    target = _target(speedup, latency_us, keep)
    profile = load_profile(device, profiles) if device else local_profile(profiles)
    small = data == "digits"
    recipe = Recipe(
        epochs=epochs if epochs is not None else (DIGITS_EPOCHS if small else DEFAULT_EPOCHS),
        batch_size=batch_size if batch_size is not None else (DIGITS_BATCH if small else DEFAULT_BATCH),
        learning_rate=learning_rate,
        seed=seed,
    )
    settings = Settings(model, data, device or profile.name, target, recipe, penalty, train_images)
    console = Console(stderr=as_json, highlight=False)
    try:
        with _observing(console) as observer:
            report = compress(settings, profile, out, observer, resume=resume)
    except KeyboardInterrupt:
        again = " ".join(argument for argument in sys.argv[1:] if argument != "--resume")
        click.echo(f"Interrupted. Go on with: hwprune {again} --resume", err=True)
        sys.exit(INTERRUPTED)
    if as_json:
        click.echo(json.dumps(report.as_record(), indent=2))
    else:
        _print_report(console, report, out)


def _target(speedup: float | None, latency_us: float | None, keep: float | None) -> Target:
    given = [value is not None for value in (speedup, latency_us, keep)]
    if sum(given) > 1:
        raise click.UsageError("give only one of --speedup, --latency-us and --keep")
    if latency_us is not None:
        return LatencyUs(latency_us)
    if keep is not None:
        return Keep(keep)
    return Speedup(2.0 if speedup is None else speedup)


class _Lines:
    """Plain lines, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def note(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)

    def phase(self, name: str, batches: int, done: int) -> None:
        self.note(f"training {name}: {batches} batches" + (f", {done} of them done" if done else ""))

    def batch(self, loss: float) -> None:
        """Batches make no lines."""

    def epoch(self, row: dict[str, Any]) -> None:
        self.note(_epoch_line(row))


class _Bar(_Lines):
    """A progress bar, for terminals."""

    def __init__(self, console: Console, progress: Progress) -> None:
        super().__init__(console)
        self._progress = progress
        self._task: Any = None

    def phase(self, name: str, batches: int, done: int) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(name, total=batches, completed=done, status="")

    def batch(self, loss: float) -> None:
        self._progress.update(self._task, advance=1, status=f"loss {loss:.3f}")


def _epoch_line(row: dict[str, Any]) -> str:
    return (
        f"{row['phase']} epoch {row['epoch']}: loss {row['loss']:.4f}, accuracy {row['accuracy']:.2%}, "
        f"{row['groups_alive']} groups alive, predicted {row['predicted_us']:.0f} us, {row['seconds']:.1f} s"
    )


@contextmanager
def _observing(console: Console) -> Iterator[_Lines]:
    """A progress bar on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bar(console, progress)


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
    if not record["target_met"]:
        console.print("warning: the measured network misses the target; see the turns in report.json")
    for line in unchanged_lines(record["layers"]):
        console.print(line, markup=False)
    console.print(f"written to {out}/: model.onnx, slim/, report.json, report.html, history.csv")


def unchanged_lines(layers: Sequence[dict[str, Any]]) -> list[str]:
    """One line for every layer that had to keep its width, with the reason."""
    return [
        f"kept whole: {layer['name']} ({layer['width_before']} channels): {layer['kept_whole_because']}"
        for layer in layers
        if layer["kept_whole_because"]
    ]


if __name__ == "__main__":
    main()
