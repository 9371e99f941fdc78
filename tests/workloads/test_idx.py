"""Small idx files made here, right and wrong."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from hwprune.errors import WorkloadError
from hwprune.workloads.idx import read_idx

VALUES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
CONTENT = bytes((0, 0, 8, 3)) + struct.pack(">3I", 2, 3, 4) + VALUES.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_reads_what_was_written(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(CONTENT) if packed else CONTENT)
    found = read_idx(path, dimensions=3)
    assert found.dtype == np.uint8
    assert np.array_equal(found, VALUES)


BROKEN = {
    "empty": (b"", "got nothing and 0 bytes"),
    "wrong magic": (b"\x89PNG" + CONTENT[4:], "starts with 00000803.*got 89504e47"),
    "wrong dimensions": (bytes((0, 0, 8, 1)) + CONTENT[4:], "in 3 dimensions"),
    "floats": (bytes((0, 0, 13, 3)) + CONTENT[4:], "unsigned bytes"),
    "cut in the header": (CONTENT[:10], "a header of 16 bytes.*10 bytes in all"),
    "cut": (CONTENT[:-1], r"24 values for shape \(2, 3, 4\), got 23"),
    "too long": (CONTENT + b"x", "24 values.*got 25"),
    "absurd sizes": (CONTENT[:4] + b"\xff" * 12, "expected 79228162458924105385300197375 values"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("packed", [False, True])
def test_malformed_files_are_refused(tmp_path: Path, case: str, packed: bool) -> None:
    content, message = BROKEN[case]
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(WorkloadError, match=message) as raised:
        read_idx(path, dimensions=3)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [CONTENT, gzip.compress(CONTENT)[:-12], gzip.compress(CONTENT)[:10] + b"\xff" * 30],
    ids=["not packed", "cut off", "damaged"],
)
def test_damaged_packing_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_idx(path, dimensions=3)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_idx(tmp_path / "nothing", dimensions=1)
