"""What the outcome of a run depends on besides the run: code and versions, as one word."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from environments import ROOT

import hwprune
from hwprune.runtime.environment import versions

#: Modules beside this one that have no part in what a run comes to.
ONLOOKERS = frozenset({"__main__.py", "page.py", "rows.py", "picture.py", "ablate.py", "ablation_page.py"})


def fingerprint() -> str:
    """Of the package, the contenders and how they are measured, and of the versions they run with.

    A commit that touches none of them leaves it as it is, which a revision would not.
    """
    package, here = Path(hwprune.__file__).parent, Path(__file__).parent
    files = {f"hwprune/{path.relative_to(package).as_posix()}": path for path in package.rglob("*.py")}
    files |= {f"benchmark/{path.name}": path for path in here.glob("*.py") if path.name not in ONLOOKERS}
    files["constraints"] = ROOT / "tools" / "constraints.txt"
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name].read_bytes()).digest())
    return digest.hexdigest()[:16]
