"""What runs on the nodes of a cluster: a task, and the measurements that it asks other nodes for."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwprune.device.profile import DeviceProfile
from hwprune.errors import HostError, HwpruneError
from hwprune.executors.base import Task, error_of
from hwprune.executors.parcels import pack, unpack
from hwprune.executors.quiet import Worker, alone
from hwprune.operators import Operator
from hwprune.phases import Observer, epoch_line, phase_line
from hwprune.runtime.bench import THIS_MACHINE, Bench
from hwprune.runtime.timing import Timing

#: How often a task or a measurement is begun again whose node or process was lost.
RETRIES = 3
#: Seconds that a measurement waits for its device to come back where no node offers it any more.
PATIENCE = 600.0
#: What to do about an error that neither the user's code nor a runtime tells of.
SAME_VERSION = "see that every node has the same version of hwprune, and the packages that its devices need"
#: Seconds between looks at whether it is there.
_LOOK = 5.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a node sends back of a task.

    Attributes:
        told: What the task returned.
        files: What it made, be it to go on from; see :func:`~hwprune.executors.parcels.pack`.
        error: Why it failed, where it did.
    """

    told: Mapping[str, Any]
    files: bytes
    error: HwpruneError | None


def run_task(task: Task, files: bytes, mailbox: Any) -> Delivery:
    """Does a task on this node, in a folder of its own.

    Args:
        task: The task.
        files: What it needs; see :func:`~hwprune.executors.parcels.pack`.
        mailbox: A queue for lines that the user should see.
    """
    import ray

    node = ray.get_runtime_context().get_node_id()[:8]
    try:
        with tempfile.TemporaryDirectory(prefix="hwprune-") as folder, Worker() as worker:
            observer = Mail(task.name, mailbox, worker)
            observer.note(f"begins on node {node}")
            return _deliver(task, files, Path(folder), observer, Farm(worker), f"node {node}")
    except Exception as error:  # no room for the folder, or no place for the locks
        return Delivery({}, pack(Path(), ()), error_of(error, task.name, f"node {node}"))


def _deliver(task: Task, files: bytes, root: Path, observer: Observer, bench: Bench, node: str) -> Delivery:
    """Does a task below ``root``; of one that fails too what it has made, to go on from with ``--resume``."""
    try:
        unpack(files, root, task.needs)
        told, failed = task.run(root, bench, observer), None
    except Exception as error:  # of the user's own code, which may raise anything
        told, failed = {}, error_of(error, task.name, node)
    return Delivery(told, pack(root, task.makes), failed)


class Mail:
    """Puts lines into a queue as an observer, and lets measurements on this machine have it to themselves.

    Args:
        name: Begins every line.
        mailbox: The queue.
        worker: Steps aside after every batch.
    """

    def __init__(self, name: str, mailbox: Any, worker: Worker) -> None:
        self._name, self._mailbox, self._worker = name, mailbox, worker

    def note(self, line: str) -> None:
        """A line."""
        self._mailbox.put(f"{self._name}: {line}")

    def phase(self, name: str, batches: int, done: int) -> None:
        """A line."""
        self.note(phase_line(name, batches, done))

    def batch(self, loss: float) -> None:
        """The moment to step aside."""
        self._worker.step_aside()

    def epoch(self, row: dict[str, Any], alive: Mapping[str, int]) -> None:
        """A line."""
        self.note(epoch_line(row))


class Farm:
    """The nodes of the cluster that offer a device: each measurement is a task that has one to itself.

    Args:
        worker: Who asks; it is out of the way meanwhile.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def localize(
        self, profile: DeviceProfile, operators: Sequence[Operator], *, notify: Callable[[str], None]
    ) -> DeviceProfile:
        """See :meth:`~hwprune.runtime.bench.Bench.localize`."""
        # The node has no file of ours: the rows travel with the profile.
        whole = profile.model_copy(update={"rows": profile.table})
        local, lines = self.ask(whole, localize_there, tuple(operators))
        for line in lines:
            notify(line)
        return local  # type: ignore[no-any-return]

    def time(
        self, paths: Mapping[str, Path], profile: DeviceProfile, runs: int | None = None
    ) -> dict[str, Timing]:
        """See :meth:`~hwprune.runtime.bench.Bench.time`."""
        files = {name: (path.name, _with_companion(path)) for name, path in paths.items()}
        return self.ask(profile, time_there, (files, runs))  # type: ignore[no-any-return]

    def wait(self, seconds: float) -> None:
        """See :meth:`~hwprune.runtime.bench.Bench.wait`."""
        with self._worker.aside():
            time.sleep(seconds)

    def ask(self, profile: DeviceProfile, measurement: Callable[..., Any], subject: Any) -> Any:
        """The result of a measurement on a node that offers the profile's device.

        Args:
            profile: Its name is that of the resource.
            measurement: Called there with that machine's bench, ``profile`` and ``subject``.
            subject: What to measure.

        Raises:
            HostError: If the device is lost, or away for too long, or its node lacks what is needed.
            HwpruneError: What the measurement raises.
        """
        import ray

        options = {"num_cpus": 0, "resources": {profile.name: 1}, "max_retries": RETRIES}
        remote = ray.remote(measure_there).options(name=f"measure {profile.name}", **options)
        with self._worker.aside():
            asked = remote.remote(measurement, profile, subject)
            _await(ray, asked, profile.name)
            try:
                answer = ray.get(asked)
            except ray.exceptions.RayTaskError as error:  # of a runtime, say, and not of the user's code
                raise HostError(
                    "the measurement failed on the node with the device",
                    where=profile.name,
                    got=last_line(error),
                    hint=SAME_VERSION,
                ) from error
            except ray.exceptions.RayError as error:
                raise HostError("the device was lost", where=profile.name, got=first_line(error)) from error
        if isinstance(answer, HwpruneError):
            raise answer
        return answer


def first_line(error: Exception) -> str:
    """Of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_line(error: Exception) -> str:
    """Of an error's message: what was raised, where that is the report of a stack."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def measure_there(measurement: Callable[..., Any], profile: DeviceProfile, subject: Any) -> Any:
    """Runs a measurement while nothing of ours computes on this machine; an error is returned, not raised.

    An error that is raised would come back as one of Ray's, and Ray might begin again.
    """
    try:
        with alone():
            return measurement(THIS_MACHINE, profile, subject)
    except HwpruneError as error:
        return error
    except OSError as error:  # of this node, such as a full disk
        return error_of(error, profile.name, "the node with the device")


def localize_there(
    bench: Bench, profile: DeviceProfile, operators: Sequence[Operator]
) -> tuple[DeviceProfile, list[str]]:
    """The profile made true for this node, and the lines that the user should know."""
    lines: list[str] = []
    local = bench.localize(profile, operators, notify=lines.append)
    return local.model_copy(update={"rows": local.table}), lines


def time_there(
    bench: Bench,
    profile: DeviceProfile,
    subject: tuple[Mapping[str, tuple[str, Mapping[str, bytes]]], int | None],
) -> dict[str, Timing]:
    """Times model files that came as bytes.

    Args:
        bench: That machine's.
        profile: Says runtime, threads, batch and precision.
        subject: Name to the name of the model file, and the contents of it and of what lies beside it; and
            the timed runs of each.
    """
    files, runs = subject
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        paths = {}
        for name, (file, contents) in files.items():
            place = Path(folder) / name
            place.mkdir()
            for part, content in contents.items():
                (place / part).write_bytes(content)
            paths[name] = place / file
        return bench.time(paths, profile, runs)


def _with_companion(path: Path) -> dict[str, bytes]:
    """A model file, and the weights that some runtimes keep beside it, by their names."""
    parts = (path, path.with_suffix(".bin"))
    return {part.name: part.read_bytes() for part in parts if part.is_file()}


def _await(ray: Any, asked: Any, device: str) -> None:
    """Waits for a measurement; not for ever where no node offers its device any more."""
    missed_since = None
    while not ray.wait([asked], timeout=_LOOK)[0]:
        if ray.cluster_resources().get(device, 0) >= 1:
            missed_since = None
            continue
        missed_since = missed_since or time.monotonic()
        if time.monotonic() - missed_since > PATIENCE:
            ray.cancel(asked)
            raise HostError(
                "no node of the cluster offers the device any more",
                where=device,
                hint="attach it again, and go on with --resume",
            )
