"""The code and the versions that a result depends on, as one word."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import hwprune
from hwprune.runtime.environment import versions

_TOOLS = Path(__file__).parent


def fingerprint(files: Mapping[str, Path]) -> str:
    """Of the package, the tools named, the tested set of packages, and the versions that are installed.

    A commit that touches none of them leaves it as it is, which a revision would not.

    Args:
        files: Name to file of what makes the result, besides the package; names count, places do not.
    """
    package = Path(hwprune.__file__).parent
    counted = {f"hwprune/{path.relative_to(package).as_posix()}": path for path in package.rglob("*.py")}
    counted |= {**files, "constraints": _TOOLS / "constraints.txt"}
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for name in sorted(counted):
        digest.update(name.encode() + b"\0" + hashlib.sha256(counted[name].read_bytes()).digest())
    return digest.hexdigest()[:16]
