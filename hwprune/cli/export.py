"""The command ``hwprune export``: the slim network for another runtime, or on 8 bits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hwprune.cli.common import answer, json_option, told
from hwprune.quantization import CALIBRATION_IMAGES
from hwprune.quantized_export import INT8_FORMATS, export_quantized
from hwprune.report import single_precision_file
from hwprune.runtime.formats import FORMATS, convert


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "name",
    type=click.Choice(sorted([*FORMATS, *INT8_FORMATS])),
    default="onnx",
    show_default=True,
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to; default: RUN/FORMAT.")
@click.option(
    "--calibration-images",
    type=click.IntRange(min=1),
    help="For 8 bits: training images of the run that the ranges of activations are taken from "
    f"[default: {CALIBRATION_IMAGES}].",
)
@json_option
@told
def export_command(
    run: Path, name: str, out: Path | None, calibration_images: int | None, as_json: bool
) -> None:
    """Convert the slim network of a finished run, and compare it with the file it came from.

    onnx simplifies the file (constants and batch norms folded), openvino writes its intermediate
    representation, mnn and ncnn the files of these runtimes; mnn-sparse has MNN store layers of many
    zeros as sparse ones; torch writes a program that torch.export.load reads. tensorrt and tensorrt-rtx
    build an engine in single precision for the GPU of this machine. onnx-int8 and openvino-int8
    quantise the network to 8 bits, calibrated on the training images of the run, and tell its test
    accuracy before and after, both in that runtime.

    Example: hwprune export hwprune-run --format openvino
    """
    if calibration_images is not None and name not in INT8_FORMATS:
        raise click.UsageError(f"--calibration-images is for {', '.join(INT8_FORMATS)}")
    out = out or run / name
    if name in INT8_FORMATS:
        exported = export_quantized(run, name, out, calibration_images or CALIBRATION_IMAGES)
        files, scored = exported.files, exported.scores
        facts: dict[str, Any] = {
            "calibration_images": scored.calibration_images,
            "accuracy": {"before": scored.before, "after": scored.after},
        }
        line = (
            f"test accuracy {scored.before:.2%} in single precision, {scored.after:.2%} on 8 bits "
            f"({scored.calibration_images} calibration images)"
        )
    else:
        source = single_precision_file(run)
        conversion = convert(source, name, out)
        files, facts = conversion.files, asdict(conversion)
        line = f"equal to {source} within {conversion.max_abs_difference:.1e}"
    sizes = {str(file): file.stat().st_size for file in files}
    if as_json:
        answer({"format": name, **facts, "files": sizes})
        return
    for file, size in sizes.items():
        click.echo(f"{file}  {size:,} bytes")
    click.echo(line)
