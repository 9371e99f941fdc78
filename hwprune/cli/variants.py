"""The command ``hwprune variants``: a compressed network for every device and target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from hwprune.cli.common import answer, json_option, profiles_option, told
from hwprune.cli.config import config_option
from hwprune.cli.progress import observing
from hwprune.cli.training import Training, telling_how_to_resume, training_options
from hwprune.device.library import load_profile
from hwprune.errors import InputError, TargetError
from hwprune.executors.base import Executor
from hwprune.executors.cluster import RayCluster
from hwprune.measured_on import stand_in_lines
from hwprune.processes import launched_count
from hwprune.runtime.environment import local_profile
from hwprune.variants import Grid, make_variants
from hwprune.variants_page import VariantsFolder, why_not
from hwprune.workloads import dataset_names

#: Stands for a cluster of no address.
ANY_CLUSTER = "any"
#: Columns of the closing table.
SHOWN = [
    "model",
    "device",
    "target",
    "value",
    "network",
    "status",
    "accuracy",
    "latency_us_median",
    "speedup",
]


@click.command("variants")
@click.option("--model", "models", multiple=True, default=("resnet8",), show_default=True)
@click.option("--data", default="digits", show_default=True)
@click.option(
    "--device", "devices", multiple=True, help="Default: the profile of this machine's CPU runtime."
)
@profiles_option
@training_options
@config_option
@click.option("--out", type=click.Path(path_type=Path), default=Path("hwprune-variants"), show_default=True)
@click.option(
    "--int8",
    is_flag=True,
    help="Quantise every variant besides, measure and score it: for devices of ONNX Runtime and OpenVINO.",
)
@click.option("--resume", is_flag=True, help="Make only what is missing in the output folder.")
@click.option(
    "--ray",
    "address",
    is_flag=False,
    flag_value=ANY_CLUSTER,
    metavar="[HOST:PORT]",
    help="Make variants side by side on a Ray cluster, and measure on its nodes that offer the device as a "
    "resource of the profile's name. Without an address: the cluster of this machine, or else this machine.",
)
@click.option(
    "--ray-cores",
    type=click.IntRange(min=1),
    help="Cores that each task asks for on the cluster. Default: 1.",
)
@json_option
@told
def variants(
    models: Sequence[str],
    data: str,
    devices: Sequence[str],
    profiles: Path | None,
    training: Training,
    out: Path,
    int8: bool,
    resume: bool,
    address: str | None,
    ray_cores: int | None,
    as_json: bool,
) -> None:
    """Make a compressed network for every model, device and target given.

    Every option that names one may be given several times. The dense training of a model is shared; a
    tighter target starts from the network of the looser one. Each variant has a folder that can be shipped;
    manifest.json lists them with their files and measured numbers.

    Example: hwprune variants --model resnet20 --data fashion-mnist --speedup 2 --speedup 4 --out variants
    """
    if ray_cores is not None and address is None:
        raise click.UsageError("--ray-cores goes with --ray")
    found = [load_profile(name, profiles) for name in devices] or [local_profile(profiles)]
    by_name = dict(zip(devices or [found[0].name], found, strict=True))
    executor = None
    if address is not None:
        _refuse_relative(training.weights, data)
        executor = RayCluster(None if address == ANY_CLUSTER else address, ray_cores or 1)
    named = None if profiles is None else str(profiles)
    grid = replace(training.grid(models, data, by_name), int8=int8, profiles=named)
    run_grid(grid, out, resume=resume, as_json=as_json, executor=executor)


def _refuse_relative(weights: Path | None, data: str) -> None:
    """Raises :class:`InputError` for paths that mean another place on the nodes of a cluster."""
    source, _, folder = data.partition(":")
    paths = {"--weights": weights, "--data": Path(folder) if folder and source in dataset_names() else None}
    for option, path in paths.items():
        if path is not None and not path.is_absolute():
            raise InputError(
                "a path of this folder is nowhere on the nodes of a cluster",
                where=option,
                expected="an absolute one",
                got=path,
                hint=f"put it on every node that trains, and give {path.absolute()}, say",
            )


def refuse_processes() -> None:
    """Raises :class:`InputError` under ``torchrun``: its processes train one network together."""
    if launched_count() > 1:
        raise InputError(
            "several networks cannot be made under torchrun",
            expected="one target, or one process",
            got=f"{launched_count()} processes",
            hint="start a run for each target, or leave torchrun out",
        )


def run_grid(grid: Grid, out: Path, *, resume: bool, as_json: bool, executor: Executor | None = None) -> None:
    """Makes the variants and shows what became of them.

    Args:
        grid: Which.
        out: The output folder.
        resume: Make only what is missing.
        as_json: Print the manifest and nothing else.
        executor: Who makes them; see :func:`~hwprune.variants.make_variants`.

    Raises:
        TargetError: If one failed or misses its target.
        InputError: Under ``torchrun``.
    """
    refuse_processes()
    console = Console(stderr=as_json, highlight=False, emoji=False)
    with telling_how_to_resume(), observing(console) as observer:
        folder = make_variants(grid, out, observer, resume=resume, executor=executor)
    if as_json:
        answer(folder.record)
    else:
        _print_variants(folder, out)
    asked = {variant.name for variant in grid.variants()}  # others may have been made before
    entries = [entry for entry in folder.record["variants"] if entry["name"] in asked]
    short = [entry["name"] for entry in entries if entry["status"] != "done"]
    if short:
        raise TargetError(
            f"{len(short)} of {len(entries)} variants failed or miss their target",
            where=", ".join(short),
            hint=f"see {out}/manifest.json; the others are complete",
        )


def _print_variants(folder: VariantsFolder, out: Path) -> None:
    networks = folder.networks()
    if len(networks):
        slim = networks.reindex(columns=SHOWN)[networks["status"] != ""]
        click.echo(slim.to_string(index=False, na_rep=""))
    for entry in folder.record["variants"]:
        if why := why_not(entry):
            click.echo(f"{entry['name']} {entry['status']}: {why}")
        for note in entry.get("notes", ()):
            click.echo(f"{entry['name']}: {note}")
    for line in stand_in_lines(folder.measured):
        click.echo(line)
    click.echo(f"written to {out}/: manifest.json, report.html and a folder per variant")
