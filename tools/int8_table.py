"""Accuracy and latency of a network dense and slim, in single precision and on 8 bits.

    python tools/int8_table.py --out docs/int8.md

Trains a network on Fashion-MNIST, prunes it for the device, quantises both, and times all four in
alternation, runtime by runtime. The default settings are meant to take less than 8 minutes on one core.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from bench_pages import machine_line, write_page
from rich.console import Console

from hwprune.cli.progress import Lines
from hwprune.device.library import load_profile
from hwprune.device.profile import DeviceProfile, RuntimeSpec
from hwprune.pipeline import compress
from hwprune.quantization import CALIBRATION_IMAGES, accuracy_in_runtime, quantize_on
from hwprune.report import single_precision_file
from hwprune.runtime.base import REGISTRY, kinds_running
from hwprune.runtime.environment import local_profile
from hwprune.runtime.export import export
from hwprune.runtime.quantize import is_quantized
from hwprune.runtime.timing import Timing, measure_alternately
from hwprune.settings import Settings, Shared
from hwprune.targets import Speedup, describe
from hwprune.train.checkpoint import load_checkpoint
from hwprune.train.loop import Recipe
from hwprune.workloads import Dataset, load_dataset, make_model

DATA = "fashion-mnist"
#: How to read the table.
EXPLANATION = (
    "The slim network was pruned for its speed in single precision and quantised afterwards. *Accuracy* is",
    "that of the file in the runtime, on all test images; *speed-up* is over the dense network in single",
    "precision. One seed: differences of a few tenths of a point mean nothing.",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One network in one runtime.

    Attributes:
        runtime: Its kind.
        network: Dense or slim, and its precision.
        accuracy: On the test images, in [0, 1].
        timing: Of the four networks in alternation.
        file_bytes: Size of the ONNX file.
        speedup: Median of the dense network in single precision over this one's.
    """

    runtime: str
    network: str
    accuracy: float
    timing: Timing
    file_bytes: int
    speedup: float

    def cells(self) -> str:
        """A line of the table."""
        timing = self.timing
        return (
            f"| {self.runtime} | {self.network} | {self.accuracy:.2%} | {timing.median_us:.1f} "
            f"({timing.p10_us:.1f} to {timing.p90_us:.1f}) | {timing.runs} | {self.speedup:.2f} "
            f"| {self.file_bytes / 1024:.0f} |"
        )


def make_networks(settings: Settings, profile: DeviceProfile, dataset: Dataset, folder: Path) -> list[Path]:
    """Trains, prunes and quantises: files of dense fp32, dense int8, slim fp32 and slim int8."""
    shared = Shared(dense=folder / "dense.safetensors")
    observer = Lines(Console(highlight=False))
    compress(settings, profile, folder / "run", observer, resume=False, shared=shared)
    channels, size, _ = dataset.image_shape
    dense = make_model(settings.model, in_channels=channels, image_size=size, classes=dataset.classes, seed=0)
    dense.load_state_dict(load_checkpoint(folder / "dense.safetensors")["trainer"]["model"])
    export(dense, folder / "dense.onnx", dataset.test_images[:2])
    files = []
    for source in (folder / "dense.onnx", single_precision_file(folder / "run")):
        quantized = source.with_suffix(".int8.onnx")
        quantize_on(dataset, source, quantized)
        files += [source, quantized]
    return files


def measure_in(kind: str, files: Sequence[Path], dataset: Dataset, profile: DeviceProfile) -> list[Row]:
    """The four networks in one runtime, timed alternately."""
    names = ("dense fp32", "dense int8", "slim fp32", "slim int8")
    paths: Mapping[str, Path] = dict(zip(names, files, strict=True))
    spec = RuntimeSpec(kind=kind, threads=profile.runtime.threads, batch=profile.runtime.batch)
    timings = measure_alternately(paths, profile.model_copy(update={"runtime": spec}))
    rows = []
    for name, path in paths.items():
        precision = "int8" if is_quantized(path) else "fp32"
        accuracy = accuracy_in_runtime(path, spec.model_copy(update={"precision": precision}), dataset)
        speedup = timings["dense fp32"].median_us / timings[name].median_us
        rows.append(Row(kind, name, accuracy, timings[name], path.stat().st_size, speedup))
    return rows


def as_markdown(rows: Sequence[Row], settings: Settings, profile: DeviceProfile) -> list[str]:
    """The page."""
    recipe, target = settings.recipe, describe(settings.target)
    command = shlex.join(map(_without_folder, sys.argv[1:]))
    return [
        "# Pruned and quantised",
        "",
        f"Written by `python tools/int8_table.py {command}`; {machine_line()}",
        "",
        f"{settings.model} on the first {settings.train_images} training images of Fashion-MNIST: "
        f"{recipe.epochs} epochs dense and as many pruned",
        f"for {profile.name}, {target['kind']} {target['value']:g}; batches of {recipe.batch_size}, "
        f"seed {recipe.seed}; calibrated on {CALIBRATION_IMAGES} of the training images.",
        *EXPLANATION,
        "",
        f"Latency in microseconds (p10 to p90), {profile.runtime.threads} thread(s), batch "
        f"{profile.runtime.batch}, the four networks of a runtime in alternation.",
        "",
        "| runtime | network | accuracy | latency, us | runs | speed-up | file, KiB |",
        "|---|---|---|---|---|---|---|",
        *(row.cells() for row in rows),
        "",
        "Runtimes: "
        + ", ".join(f"{row.runtime} {row.timing.environment['runtime_version']}" for row in rows[::4]),
    ]


def _without_folder(argument: str) -> str:
    """An argument without an absolute path: the page is read on other machines."""
    return Path(argument).name if argument.startswith("/") else argument


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="The page; shown where none is named.")
@click.option("--model", default="resnet20", show_default=True)
@click.option("--images", default=6000, show_default=True, help="Training images.")
@click.option("--epochs", default=4, show_default=True, help="Dense, and as many pruned.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--speedup", default=2.0, show_default=True)
@click.option("--device", help="Default: the profile of this machine's CPU runtime.")
def main(
    out: Path | None,
    model: str,
    images: int,
    epochs: int,
    batch_size: int,
    speedup: float,
    device: str | None,
) -> None:
    """Trains, prunes, quantises, measures and writes the page."""
    profile = load_profile(device) if device else local_profile()
    dataset = load_dataset(DATA).first(images)
    settings = Settings(
        model, DATA, profile.name, Speedup(speedup), Recipe(epochs, batch_size), train_images=images
    )
    kinds = [
        kind for kind in kinds_running("int8") if importlib.util.find_spec(REGISTRY[kind][2]) is not None
    ]
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        files = make_networks(settings, profile, dataset, Path(folder))
        rows = [row for kind in kinds for row in measure_in(kind, files, dataset, profile)]
    write_page(as_markdown(rows, settings, profile), out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
