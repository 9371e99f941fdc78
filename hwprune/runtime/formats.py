"""Formats that an ONNX file is converted to for deployment, each compared with the file it came from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import onnx

from hwprune.device.profile import RuntimeSpec
from hwprune.errors import InputError, RuntimeUnavailableError, VerificationError
from hwprune.files import replacing
from hwprune.runtime.base import Array, get_runtime, kinds_running
from hwprune.runtime.half import is_half
from hwprune.runtime.quantize import is_quantized, read_graph
from hwprune.runtime.timing import random_feed

#: Largest difference allowed from the file it came from, as a fraction of the largest output.
TOLERANCE = 1e-4
#: The same for networks in half precision, whose numbers have eleven bits.
HALF_TOLERANCE = 1e-2
#: The same in MNN for networks with kernels beyond 3x3, which it transforms (Winograd) into larger tiles than
#: others do: a single convolution of 5x5 or 7x7 is then 4e-4 to 9e-4 off double precision, one of 3x3 5e-6.
LARGE_TILES, LARGE_TILES_TOLERANCE = ("mnn", "mnn-sparse"), 5e-3
#: Images that the outputs are compared on.
COMPARED_IMAGES = 4


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion wrote.

    Attributes:
        files: The main file first.
        max_abs_difference: Largest difference of an output from the ONNX file's, on random inputs.
    """

    files: tuple[Path, ...]
    max_abs_difference: float


def _to_onnx(source: Path, target: Path) -> tuple[Path, ...]:
    """Simplifies: constants folded, batch norms folded into convolutions, the result checked."""
    try:
        from onnxsim import simplify
    except ImportError as error:
        raise RuntimeUnavailableError(
            "simplifying needs the package onnxsim", hint="pip install 'hwprune[simplify]'"
        ) from error
    simplified, equal = simplify(onnx.load(source))
    if not equal:
        raise VerificationError("the simplified network does not compute the same", where=source)
    onnx.checker.check_model(simplified, full_check=True)
    onnx.save_model(simplified, str(target))
    return (target,)


def _to_openvino(source: Path, target: Path) -> tuple[Path, ...]:
    """OpenVINO's intermediate representation in single precision: structure as XML, weights beside it."""
    try:
        import openvino
    except ImportError as error:
        raise RuntimeUnavailableError(
            "OpenVINO needs the package openvino", hint="pip install 'hwprune[openvino]'"
        ) from error
    model = openvino.convert_model(str(source))
    openvino.save_model(model, str(target), compress_to_fp16=False)
    return target, target.with_suffix(".bin")


class Converter(Protocol):
    """A runtime with a file format of its own."""

    def convert(self, source: Path, target: Path) -> tuple[Path, ...]:
        """Writes an ONNX file in that format; the main file comes first."""
        ...


def _by_runtime(kind: str) -> Callable[[Path, Path], tuple[Path, ...]]:
    return lambda source, target: cast(Converter, get_runtime(kind)).convert(source, target)


#: Format to the ending of its main file, how to convert, and the runtime that reads it.
FORMATS: dict[str, tuple[str, Callable[[Path, Path], tuple[Path, ...]], str]] = {
    "mnn": (".mnn", _by_runtime("mnn"), "mnn"),
    "mnn-sparse": (".mnn", _by_runtime("mnn-sparse"), "mnn-sparse"),
    "ncnn": (".ncnn.param", _by_runtime("ncnn"), "ncnn"),
    "onnx": (".onnx", _to_onnx, "onnxruntime"),
    "openvino": (".xml", _to_openvino, "openvino"),
    "tensorrt": (".engine", _by_runtime("tensorrt"), "tensorrt"),
    "tensorrt-rtx": (".engine", _by_runtime("tensorrt-rtx"), "tensorrt-rtx"),
    "torch": (".pt2", _by_runtime("torch"), "torch"),
}


def convert(source: Path, name: str, out: Path) -> Conversion:
    """Converts an ONNX file, compares the outputs of both on random inputs, and only then puts it in place.

    Args:
        source: The ONNX file. A quantised one is converted for runtimes that run 8 bits, and both files are
            compared there: runtimes round differently.
        name: A key of :data:`FORMATS`.
        out: The folder to write into; made where it is missing.

    Returns:
        The files, and the difference.

    Raises:
        InputError: If there is no such file or format, it does not hold quantised networks, or the file
            would be written over the one that it is made from.
        RuntimeUnavailableError: If the format's package is missing.
        VerificationError: If the outputs differ; what was in the folder is then as it was.
    """
    if not source.is_file():
        raise InputError("no such model file", where=source, expected="an ONNX file")
    if name not in FORMATS:
        raise InputError("unknown format", expected=f"one of {', '.join(FORMATS)}", got=name)
    ending, write, reader = FORMATS[name]
    # The simplifier computes what it can beforehand: weights would come back in single precision.
    quantized, holding = is_quantized(source), [kind for kind in kinds_running("int8") if kind in FORMATS]
    if quantized and name not in holding:
        raise InputError(
            f"the format {name} does not hold quantised networks",
            where=source,
            expected=f"single precision, or one of the formats {', '.join(holding)}",
        )
    target = out / f"{source.stem}{ending}"
    if target.resolve() == source.resolve():
        raise InputError(
            f"the {name} file would take the place of the file that it is made from",
            where=target,
            expected="another folder",
            hint="name another one with --out",
        )
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        staged = write(source, Path(folder) / target.name)
        difference = _difference(source, staged[0], reader, quantized=quantized)
        out.mkdir(parents=True, exist_ok=True)
        for file in reversed(staged):  # the main file last: whoever finds it finds all of them
            with replacing(out / file.name) as temporary:
                shutil.copyfile(file, temporary)
    return Conversion(tuple(out / file.name for file in staged), difference)


def tolerance_of(source: Path, reader: str) -> float:
    """Largest difference that rounding explains in a runtime, as a fraction of the largest output.

    Args:
        source: An ONNX file.
        reader: The kind of the runtime that runs it, or what it was converted to.
    """
    if is_half(source):
        return HALF_TOLERANCE
    large = (max(_kernel(node), default=1) > 3 for node in read_graph(source).node if node.op_type == "Conv")
    return LARGE_TILES_TOLERANCE if reader in LARGE_TILES and any(large) else TOLERANCE


def _kernel(node: onnx.NodeProto) -> Sequence[int]:
    """The sides of a convolution's kernel."""
    return next((item.ints for item in node.attribute if item.name == "kernel_shape"), ())


def _difference(source: Path, converted: Path, reader: str, *, quantized: bool) -> float:
    """Largest difference of an output, where that is within the tolerance.

    Raises:
        VerificationError: If it is not.
    """
    pairs = list(zip(*_outputs(source, converted, reader, quantized=quantized), strict=True))
    largest = max(float(np.abs(a).max()) for a, _ in pairs)
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    tolerance = tolerance_of(source, reader)
    if not difference <= tolerance * max(largest, float(np.finfo(np.float32).tiny)):
        raise VerificationError(
            f"{converted.name} does not compute what the ONNX file computes",
            where=source,
            expected=f"a difference of at most {tolerance:g} of the largest output, {largest:.3g}",
            got=f"{difference:.3g}",
            hint="nothing was kept; report the network to the project",
        )
    return difference


def _outputs(
    source: Path, converted: Path, reader: str, *, quantized: bool
) -> tuple[Sequence[Array], Sequence[Array]]:
    """Outputs of the ONNX file and of the one it was converted to, fed the same images.

    Inputs are matched by their order: some formats rename them, and some forget that the batch is open.
    """
    kind = reader if quantized else "onnxruntime"
    original = get_runtime(kind).open(source, RuntimeSpec(kind=kind))
    session = get_runtime(reader).open(converted, RuntimeSpec(kind=reader))
    feed = random_feed(original.inputs, COMPARED_IMAGES)
    names = [item.name for item in session.inputs]
    return original.run(feed), session.run(dict(zip(names, feed.values(), strict=True)))
