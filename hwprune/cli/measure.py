"""The command ``hwprune measure``: time a model file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from hwprune.cli.common import answer, json_option, profiles_option, told
from hwprune.device.library import load_profile
from hwprune.runtime.environment import local_profile
from hwprune.runtime.remote import Host, measure_on
from hwprune.runtime.timing import measure

#: Of another machine, where none is named.
DEFAULT_PYTHON = "python3"


@click.command("measure")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--device", help="Profile whose runtime, threads and batch to use; default: this machine's.")
@profiles_option
@click.option("--runs", type=click.IntRange(min=1), help="Timed runs; default: until the median is certain.")
@click.option("--host", help="Measure there instead: user@host, reached with ssh without a password.")
@click.option("--python", show_default=DEFAULT_PYTHON, help="With --host: its Python.")
@click.option("--port", type=click.IntRange(1, 65535), help="With --host: the port of its ssh.")
@json_option
@told
def measure_command(
    file: Path,
    device: str | None,
    profiles: Path | None,
    runs: int | None,
    host: str | None,
    python: str | None,
    port: int | None,
    as_json: bool,
) -> None:
    """Time an ONNX file on this machine or, over ssh, on another one.

    The other machine needs Python and the runtime; what is sent there is removed afterwards.

    Example: hwprune measure hwprune-run/model.onnx --device x86-avx512-ort

    Example: hwprune measure hwprune-run/model.onnx --device x86-avx512-ort --host pi@board
    """
    if host is None and (python is not None or port is not None):
        raise click.UsageError("--python and --port say how another machine is reached: add --host")
    profile = load_profile(device, profiles) if device is not None else local_profile(profiles)
    if host is None:
        timing = measure(file, profile, runs)
    else:
        client = ("ssh",) if port is None else ("ssh", "-p", str(port))
        board = Host(host, python or DEFAULT_PYTHON, client)
        timing = measure_on(board, {"network": file}, profile, runs)["network"]
    if as_json:
        answer({**asdict(timing), "environment": dict(timing.environment)})
        return
    click.echo(
        f"{timing.median_us:.1f} us median, {timing.p10_us:.1f} p10, {timing.p90_us:.1f} p90, "
        f"{timing.runs} runs"
    )
    click.echo(", ".join(f"{name} {value}" for name, value in timing.environment.items()))
