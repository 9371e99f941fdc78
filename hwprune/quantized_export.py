"""The slim network of a finished run on 8 bits: quantised, converted, scored and, for variants, timed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune.device.profile import DeviceProfile
from hwprune.errors import InputError
from hwprune.files import replacing, write_json
from hwprune.output_folder import (
    INT8_FILE,
    INT8_FOLDER,
    INT8_STEM,
    REPORT_FILE,
    SINGLE_FILE,
)
from hwprune.quantization import CALIBRATION_IMAGES, Scores, quantize_on, scores
from hwprune.report import read_json, single_precision_file, told_where_damaged
from hwprune.runtime.base import get_runtime
from hwprune.runtime.bench import THIS_MACHINE, Bench
from hwprune.runtime.formats import convert
from hwprune.runtime.timing import Timing
from hwprune.workloads import Dataset, load_dataset

#: Format to the runtime that runs it.
INT8_FORMATS = {"onnx-int8": "onnxruntime", "openvino-int8": "openvino"}
#: Beside a dense network in both precisions: what is known of it, written last.
DENSE_FACTS = Path(INT8_FILE).name


@dataclass(frozen=True, slots=True)
class QuantizedExport:
    """A network on 8 bits.

    Attributes:
        files: The main file first.
        scores: Accuracy before and after.
    """

    files: tuple[Path, ...]
    scores: Scores


def export_quantized(run: Path, name: str, out: Path, images: int = CALIBRATION_IMAGES) -> QuantizedExport:
    """Quantises the slim network of a run on the training images of the run, and scores it.

    Args:
        run: The folder of a finished run.
        name: A key of :data:`INT8_FORMATS`.
        out: The folder to write into; made where it is missing.
        images: Training images to calibrate on.

    Returns:
        The files, and test accuracy before and after in the runtime.

    Raises:
        ArtifactError: If there is no finished run.
        InputError: If there is no such format, or not an image.
        WorkloadError: If the run's data cannot be found.
        RuntimeUnavailableError: If the runtime is missing, or the network cannot be quantised.
    """
    if name not in INT8_FORMATS:
        raise InputError("unknown format", expected=f"one of {', '.join(INT8_FORMATS)}", got=name)
    kind, source = INT8_FORMATS[name], single_precision_file(run)
    get_runtime(kind)  # before anything is computed
    record = read_json(run / REPORT_FILE, "hwprune prune, finished")
    with told_where_damaged(run / REPORT_FILE):
        data, count = record["data"], record["train_images"]
    return _quantized(source, load_dataset(data).first(count), name, out, images)


def _quantized(source: Path, dataset: Dataset, name: str, out: Path, images: int) -> QuantizedExport:
    """Quantises an ONNX file into a folder, and scores it."""
    kind = INT8_FORMATS[name]
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        quantized = Path(folder) / f"{INT8_STEM}.onnx"
        used = quantize_on(dataset, source, quantized, images)
        scored = scores(dataset, source, quantized, kind, used)
        out.mkdir(parents=True, exist_ok=True)
        if kind != "onnxruntime":
            return QuantizedExport(convert(quantized, kind, out).files, scored)
        target = out / quantized.name
        with replacing(target) as temporary:
            shutil.copyfile(quantized, temporary)
        return QuantizedExport((target,), scored)


def quantize_dense(source: Path, data: str, train_images: int | None, profile: DeviceProfile) -> None:
    """Quantises the dense network of variants beside its file, for :func:`add_quantized`.

    Args:
        source: The dense network in single precision, as :data:`~hwprune.output_folder.SINGLE_FILE`.
        data: The data set.
        train_images: How many of its training images are used; ``None`` for all.
        profile: The device.

    Raises:
        WorkloadError: If the data cannot be found.
        RuntimeUnavailableError: If the network cannot be quantised.
    """
    dataset = load_dataset(data).first(train_images)
    exported = _quantized(source, dataset, format_for(profile), source.parent, CALIBRATION_IMAGES)
    file = exported.files[0].name
    write_json(source.parent / DENSE_FACTS, {"file": file, **_facts(exported)})


def add_quantized(
    run: Path, profile: DeviceProfile, dense: Path, bench: Bench = THIS_MACHINE
) -> dict[str, Any]:
    """Quantises a variant and times it against the network it came from, and the dense one against its own.

    Args:
        run: The folder of a finished run for a device in single precision; the network on 8 bits is
            written into a folder below.
        profile: The device.
        dense: Folder where :func:`quantize_dense` left the dense network in both.
        bench: Times the networks.

    Returns:
        What the manifest says of it: accuracy in single precision and on 8 bits, latencies of both,
        speed-up over the slim network, bytes of all files and calibration images. Likewise of the dense
        network; all four were timed alternately.

    Raises:
        RuntimeUnavailableError: If the device's runtime has no 8 bits, or the network cannot be quantised.
    """
    exported = export_quantized(run, format_for(profile), run / INT8_FOLDER)
    facts = read_json(dense / DENSE_FACTS, "hwprune variants --int8")
    paths = {
        "fp32": single_precision_file(run),
        "int8": exported.files[0],
        "dense-fp32": dense / SINGLE_FILE,
        "dense-int8": dense / facts.pop("file"),
    }
    timings = bench.time(paths, profile)
    return {
        **_facts(exported),
        **_against(timings["fp32"], timings["int8"], "slim"),
        "dense": {**facts, **_against(timings["dense-fp32"], timings["dense-int8"], "dense")},
    }


def _facts(exported: QuantizedExport) -> dict[str, Any]:
    """What is known of a network on 8 bits before it is timed."""
    return {
        "accuracy": exported.scores.after,
        "accuracy_fp32": exported.scores.before,
        "file_bytes": sum(file.stat().st_size for file in exported.files),
        "calibration_images": exported.scores.calibration_images,
    }


def _against(single: Timing, quantised: Timing, name: str) -> dict[str, Any]:
    """Latencies of a network in single precision and on 8 bits."""
    return {
        "latency_us": quantised.summary(),
        "latency_us_fp32": single.summary(),
        f"speedup_over_{name}": round(single.median_us / quantised.median_us, 4),
    }


def has_8_bits(profile: DeviceProfile) -> bool:
    """Whether variants for a device can be quantised besides."""
    return profile.runtime.precision == "fp32" and profile.runtime.kind in INT8_FORMATS.values()


def format_for(profile: DeviceProfile) -> str:
    """The format on 8 bits that a device in single precision runs.

    Raises:
        InputError: If it is on 8 bits already, or its runtime has none.
    """
    by_kind: Mapping[str, str] = {kind: name for name, kind in INT8_FORMATS.items()}
    if not has_8_bits(profile):
        raise InputError(
            "variants for this device cannot be quantised besides",
            where=f"device {profile.name}",
            expected=f"single precision in {' or '.join(by_kind)}",
            got=f"{profile.runtime.precision} in {profile.runtime.kind}",
            hint="leave --int8 out, or the device",
        )
    return by_kind[profile.runtime.kind]
