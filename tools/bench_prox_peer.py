"""The k-support norm's proximal operator of ModOpt, in an environment and a process of its own."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

#: The published implementation; the second package is one that it imports without saying so.
PACKAGES = ("modopt==1.7.2", "importlib_metadata")
#: Reads jobs, one a line; answers with the seconds that the operator took.
_WORKER = """
import json, sys, time
import numpy as np
from modopt.opt.proximity import KSupportNorm
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    norms = np.load(job["norms"])
    operator = KSupportNorm(beta=job["strength"], k_value=job["budget"])
    started = time.perf_counter()
    point = operator.op(norms)
    seconds = time.perf_counter() - started
    np.save(job["point"], point)
    print(json.dumps(seconds), flush=True)
"""


class PeerUnavailableError(Exception):
    """The peer cannot be installed or does not run; the message says why."""


class Peer:
    """ModOpt's ``KSupportNorm``, asked one problem at a time.

    Args:
        folder: Where its environment is made, or was made before.

    Raises:
        PeerUnavailableError: If it cannot be installed or started.
    """

    def __init__(self, folder: Path) -> None:
        python = _installed(folder)
        self._job = folder / "job"
        self._job.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [str(python), "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self._job,
        )
        while self._answer() != "ready":
            pass

    def set_problem(self, norms: npt.NDArray[np.float64]) -> None:
        """The norms of the next calls, shape ``(groups,)``."""
        np.save(self._job / "norms.npy", norms)

    def seconds(self, budget: int, strength: float) -> float:
        """How long one call takes, without what it takes to hand over the norms."""
        job = {"norms": "norms.npy", "point": "point.npy", "budget": budget, "strength": strength}
        assert self._process.stdin is not None  # opened above
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def point(self) -> npt.NDArray[np.float64]:
        """What the last call returned, shape ``(groups,)``."""
        return np.asarray(np.load(self._job / "point.npy"), dtype=np.float64)

    def _answer(self) -> str | float:
        """The next line that is an answer and not a remark of the package."""
        assert self._process.stdout is not None  # opened above
        for line in self._process.stdout:
            try:
                answer = json.loads(line)
            except json.JSONDecodeError:
                continue
            return str(answer) if isinstance(answer, str) else float(answer)
        raise PeerUnavailableError(f"ModOpt ended with exit code {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_details: object) -> None:
        self._process.kill()
        self._process.wait()


def _installed(folder: Path) -> Path:
    """The interpreter of an environment with the peer in it."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    if subprocess.run([str(python), "-c", "import modopt"], capture_output=True, check=False).returncode == 0:
        return python
    command = [str(python), "-m", "pip", "install", "--quiet", *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerUnavailableError((done.stderr.strip().splitlines() or ["pip failed"])[-1])
    return python
