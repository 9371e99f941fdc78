"""The command ``hwprune export``: the slim network in the format of another runtime."""

from __future__ import annotations

from pathlib import Path

import click

from hwprune.cli.common import told
from hwprune.errors import ArtifactError
from hwprune.output_folder import MODEL_FILE
from hwprune.runtime.formats import FORMATS, convert


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "name", type=click.Choice(sorted(FORMATS)), default="onnx", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to; default: RUN/FORMAT.")
@told
def export_command(run: Path, name: str, out: Path | None) -> None:
    """Convert the slim network of a finished run, and compare it with the file it came from.

    onnx simplifies the file (constants and batch norms folded), openvino writes its intermediate
    representation, mnn and ncnn the files of these runtimes; mnn-sparse has MNN store layers of many
    zeros as sparse ones.

    Example: hwprune export hwprune-run --format openvino
    """
    source = run / MODEL_FILE
    if not source.is_file():
        raise ArtifactError(
            "no finished run is here",
            where=run,
            expected=f"a folder of hwprune prune with {MODEL_FILE}",
            hint="finish the run with: hwprune prune ... --resume",
        )
    conversion = convert(source, name, out or run / name)
    for file in conversion.files:
        click.echo(f"{file}  {file.stat().st_size:,} bytes")
    click.echo(f"equal to {source} within {conversion.max_abs_difference:.1e}")
