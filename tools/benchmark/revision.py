"""What the outcome of a run depends on besides the run: code and versions, as one word."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # what all comparisons share lies there

import code_fingerprint

#: Modules beside this one that have no part in what a run comes to.
ONLOOKERS = frozenset({"__main__.py", "page.py", "rows.py", "picture.py", "ablate.py", "ablation_page.py"})


def fingerprint() -> str:
    """Of the package, the contenders and how they are measured (:func:`code_fingerprint.fingerprint`)."""
    here = Path(__file__).parent
    beside = (path for path in here.glob("*.py") if path.name not in ONLOOKERS)
    return code_fingerprint.fingerprint({f"benchmark/{path.name}": path for path in beside})
