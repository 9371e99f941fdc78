"""Measuring on another machine with the system's own ``ssh``: one connection, nothing left behind.

A script of the standard library goes there with the model files in one archive, runs from a temporary folder,
and prints what it measured. The other machine needs Python and the runtime, not this package.
"""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune.device.profile import DeviceProfile
from hwprune.device.runtimes import CPU_PROVIDER
from hwprune.errors import HostError, InputError
from hwprune.runtime import board, processor, stopwatch
from hwprune.runtime.base import check_precision
from hwprune.runtime.board import LOADERS, PLAN_FILE
from hwprune.runtime.environment import environment
from hwprune.runtime.formats import convert
from hwprune.runtime.onnx_values import read_values
from hwprune.runtime.timing import (
    Timing,
    as_run,
    batch_of,
    check_request,
    loadings_for,
    precision_of,
    timings_of,
)

#: Runtimes whose own format is made here, because what converts to it is not on the other machine.
CONVERTED = frozenset({"mnn", "mnn-sparse", "ncnn", "torch"})
#: Package to what installs it, where that is called otherwise.
DISTRIBUTIONS = {"tensorrt_rtx": "tensorrt-rtx-cu13"}
#: Never asks for a password, gives up on a host that does not answer, and notices one that falls silent.
SSH_OPTIONS = (
    *("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
)
#: Unpacks what comes through stdin into a temporary folder and runs the script there.
_BOOTSTRAP = """
import runpy, sys, tarfile, tempfile
with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        archive.extractall(folder)
    sys.path.insert(0, folder)
    sys.argv = ["board", folder]
    runpy.run_module("hwprune.runtime.board", run_name="__main__")
"""
_SENT = (stopwatch, processor, board)
_COMMAND_NOT_FOUND, _SSH_FAILED = 127, 255


@dataclass(frozen=True, slots=True)
class Host:
    """Another machine.

    Attributes:
        name: As ``ssh`` takes it: ``user@host`` or a name from its configuration.
        python: The Python there that has the runtime.
        ssh: The client and options of its own, such as a port.
    """

    name: str
    python: str = "python3"
    ssh: tuple[str, ...] = ("ssh",)


def measure_on(
    host: Host, paths: Mapping[str, Path], profile: DeviceProfile, runs: int | None = None
) -> dict[str, Timing]:
    """Times ONNX files on another machine, in alternation, by the rules of measuring here.

    Args:
        host: The machine.
        paths: Name to file.
        profile: Says runtime, threads, batch and precision.
        runs: Timed runs of each; by default as many as the median needs to be certain to 0.4 %.

    Returns:
        Name to timing; the environment is that of the host.

    Raises:
        InputError: If a file is missing or cannot be fed, or the host's name is an option.
        HostError: If the host cannot be reached, lacks Python or the runtime, refuses a model, or leaves
            before it is done.
        RuntimeUnavailableError: If a converter that is needed here is missing, or the runtime does not run
            the profile's precision.
    """
    check_request(paths, runs)
    if not host.name or host.name.startswith("-"):
        raise InputError("no such host", where="--host", expected="user@host", got=repr(host.name))
    check_precision(profile.runtime)
    if profile.runtime.kind == "onnxruntime" and profile.runtime.provider not in ("", CPU_PROVIDER):
        raise InputError(
            "on another machine ONNX Runtime is timed on the processor alone",
            where=f"device {profile.name}",
            expected=CPU_PROVIDER,
            got=profile.runtime.provider,
            hint="install hwprune there, and measure without --host",
        )
    with (
        as_run(paths, profile.runtime) as files,
        tempfile.TemporaryDirectory(prefix="hwprune-") as folder,
    ):
        loadings = loadings_for(profile.runtime, files.values(), runs)
        archive = _archive(files, profile, runs, loadings, Path(folder))
        batches = {
            name: batch_of(read_values(path).inputs, profile.runtime.batch) for name, path in files.items()
        }
        precisions = {name: precision_of(path, files[name], profile.runtime) for name, path in paths.items()}
    told, complaint, code = _talk(host, archive)
    _check(host, profile, told, complaint, code)
    facts = {
        "host": host.name,
        **next(record["machine"] for record in told if "machine" in record),
        "date": environment()["date"],
        "runtime": profile.runtime.kind,
        "threads": profile.runtime.threads,
        "loadings": loadings,
    }
    samples = {record["name"]: record["durations_us"] for record in told if "durations_us" in record}
    return timings_of(
        samples, {name: {**facts, "batch": batches[name], **precisions[name]} for name in paths}, runs
    )


def _archive(
    paths: Mapping[str, Path], profile: DeviceProfile, runs: int | None, loadings: int, folder: Path
) -> bytes:
    """The script, the plan and the model files as one tar file."""
    spec = profile.runtime
    stream = io.BytesIO()
    entries = []
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for package in ("hwprune", "hwprune/runtime"):
            _add(archive, f"{package}/__init__.py", b"")
        for module in _SENT:
            _add(archive, f"{module.__name__.replace('.', '/')}.py", Path(str(module.__file__)).read_bytes())
        for index, (name, path) in enumerate(paths.items()):
            inputs = [
                (item.name, item.filled(spec.batch), item.dtype.name) for item in read_values(path).inputs
            ]
            files: Sequence[Path] = (path,)
            if spec.kind in CONVERTED:
                files = convert(path, spec.kind, folder / str(index)).files
            sent = [f"{index}{file.name[len(path.stem) :]}" for file in files]
            for file, target in zip(files, sent, strict=True):
                _add(archive, target, file.read_bytes())
            entries.append({"name": name, "file": sent[0], "inputs": inputs})
        plan = {
            "runtime": spec.kind,
            "threads": spec.threads,
            "runs": runs,
            "loadings": loadings,
            "files": entries,
        }
        _add(archive, PLAN_FILE, json.dumps(plan).encode())
    return stream.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _talk(host: Host, archive: bytes) -> tuple[list[dict[str, Any]], str, int]:
    """Runs the script there: its records, the last line on stderr, the exit code."""
    remote = f"{shlex.quote(host.python)} -u -c {shlex.quote(_BOOTSTRAP)}"
    command = [*host.ssh, *SSH_OPTIONS, "--", host.name, remote]
    try:
        done = subprocess.run(command, input=archive, capture_output=True, check=False)
    except OSError as error:
        raise HostError(
            "the ssh client cannot be started", where=host.ssh[0], got=error.strerror, hint="install openssh"
        ) from error
    told = []
    for line in done.stdout.decode(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # a greeting of the host's shell, or the end of a line that was cut off
            continue
        if isinstance(record, dict):
            told.append(record)
    complaint = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    return told, complaint[-1] if complaint else "no message", done.returncode


def _check(
    host: Host, profile: DeviceProfile, told: Sequence[Mapping[str, Any]], complaint: str, code: int
) -> None:
    """Raises unless the host did all that it was asked for."""
    kind, where = profile.runtime.kind, f"host {host.name}"
    for record in told:
        if record.get("error") == "package":
            package = LOADERS[kind][1]
            raise HostError(
                f"the host lacks the runtime {kind}",
                where=where,
                expected=f"the package {package} in its {host.python}",
                got=record["got"],
                hint=f"on the host: {host.python} -m pip install {DISTRIBUTIONS.get(package, package)}",
            )
        if record.get("error") == "model":
            raise HostError(f"{kind} on the host refuses {record['file']}", where=where, got=record["got"])
    if code == 0 and told and told[-1].get("done"):
        return
    if any("machine" in record for record in told):
        raise HostError(
            "the host left before it was done",
            where=where,
            got=complaint,
            hint="nothing was measured; see that the host stays on, and run the command again",
        )
    if code == _COMMAND_NOT_FOUND:
        raise HostError(
            f"the host has no {host.python}", where=where, got=complaint, hint="name its Python with --python"
        )
    if code == _SSH_FAILED:
        raise HostError(
            "the host cannot be reached",
            where=where,
            got=complaint,
            hint=f"see that this works without a password: {shlex.join(host.ssh)} {host.name} true",
        )
    raise HostError(
        "the script on the host failed", where=where, expected="Python 3.9 or newer", got=complaint
    )
