"""Networks in half precision: all but their inputs and outputs, which stay in single precision."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx

from hwprune.errors import RuntimeUnavailableError
from hwprune.files import replacing
from hwprune.runtime.quantize import read_graph


def to_half(source: Path, target: Path) -> None:
    """Writes an ONNX file in half precision; the file's interface stays as it is.

    Args:
        source: An ONNX file in single precision.
        target: The file to write, replaced atomically.

    Raises:
        RuntimeUnavailableError: If the network cannot be converted.
    """
    with replacing(target) as temporary:
        temporary.write_bytes(half(source.read_bytes(), source))


def half(model: bytes, where: object = "an operator model") -> bytes:
    """An ONNX model in half precision.

    Args:
        model: Serialised, in single precision.
        where: What it is, for errors.

    Raises:
        RuntimeUnavailableError: If it cannot be converted.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # weights too small for half precision are no news
    try:
        converted = convert_float_to_float16(onnx.load_from_string(model), keep_io_types=True)
        content: bytes = converted.SerializeToString()
    except Exception as error:  # the converter raises whatever its parts raise
        raise RuntimeUnavailableError(
            "the network cannot be converted to half precision",
            where=where,
            got=f"{type(error).__name__}: {error}",
        ) from error
    finally:
        logging.disable(before)
    return content


def is_half(path: Path) -> bool:
    """Whether any weight of an ONNX file is in half precision.

    Raises:
        InputError: If there is no such file or it is not ONNX.
    """
    return any(item.data_type == onnx.TensorProto.FLOAT16 for item in read_graph(path).initializer)
