"""The idx files of MNIST and its relatives (LeCun, Cortes and Burges, yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hwprune.errors import WorkloadError

_UNSIGNED_BYTES = 0x08


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Reads an idx file of unsigned bytes, packed with gzip where its name ends in ``.gz``.

    Args:
        path: The file.
        dimensions: Expected number of dimensions.

    Returns:
        A read-only array of that many dimensions.

    Raises:
        WorkloadError: If it is not such a file, or is cut off.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise WorkloadError("an idx file cannot be read", where=path, got=error) from error
    start = 4 + 4 * dimensions
    magic = bytes((0, 0, _UNSIGNED_BYTES, dimensions))
    if content[:4] != magic or len(content) < start:
        raise WorkloadError(
            f"not an idx file of unsigned bytes in {dimensions} dimensions",
            where=path,
            expected=f"a header of {start} bytes that starts with {magic.hex()}",
            got=f"{content[:4].hex() or 'nothing'} and {len(content)} bytes in all",
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise WorkloadError(
            "an idx file is cut off or too long",
            where=path,
            expected=f"{math.prod(shape)} values for shape {shape}",
            got=len(content) - start,
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
