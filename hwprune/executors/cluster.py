"""Tasks on the nodes of a Ray cluster (extra ``ray``).

A task runs on any node that has a free core. Whatever it measures is a task of its own, which asks for the
device as a custom resource of the profile's name: the nodes that offer it are the measuring farm. Files
travel as bytes, so that the nodes need share no disk.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwprune.errors import HostError, InputError, MissingPackageError
from hwprune.executors.base import Outcome, Task, TaskObserver, failed_before
from hwprune.executors.node import RETRIES, SAME_VERSION, Delivery, first_line, last_line, run_task
from hwprune.executors.parcels import pack, unpack

#: Seconds between looks at what the nodes have told.
_LOOK = 0.5


@dataclass(frozen=True, slots=True)
class RayCluster:
    """Does tasks on a cluster, as many at a time as have their cores.

    Attributes:
        address: Of the cluster's head; ``None`` for the one that this machine belongs to, or else one of this
            machine alone.
        cores: How many each task asks for.
    """

    address: str | None = None
    cores: int = 1

    @property
    def here(self) -> bool:
        """Nodes have runtimes and data of their own."""
        return False

    def run(self, tasks: Sequence[Task], root: Path, observer: TaskObserver) -> Iterator[Outcome]:
        """See :meth:`~hwprune.executors.base.Executor.run`.

        Raises:
            MissingPackageError: If Ray is not installed.
            HostError: If there is no cluster at the address.
            InputError: If no node of the cluster offers a device, or has so many cores.
        """
        devices = sorted({device for task in tasks for device in task.devices})
        with _connected(self.address, devices) as ray:
            _check_devices(ray, devices)
            _check_cores(ray, self.cores)
            yield from _Farm(ray, self.cores, root, observer).run(tasks)


@dataclass(slots=True, eq=False)
class _Farm:
    """A cluster at work on some tasks.

    Attributes:
        ray: The package.
        cores: How many each task asks for.
        root: Where the files of the tasks are.
        observer: Told how it goes.
        outcomes: Of the tasks that are over.
        running: The reference of every task's result.
    """

    ray: Any
    cores: int
    root: Path
    observer: TaskObserver
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    running: dict[Any, Task] = field(default_factory=dict)

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yields every task as it ends."""
        mailbox = _mailbox(self.ray)
        waiting = list(tasks)
        while waiting or self.running:
            self.observer.tasks(len(self.outcomes), len(tasks))
            ready = [task for task in waiting if self.outcomes.keys() >= {*task.after, *task.requires}]
            for task in ready:
                waiting.remove(task)
                error = failed_before(task, self.outcomes)
                if error is None:
                    self._begin(task, mailbox)
                else:
                    yield self._over(Outcome(task, {}, error), len(tasks))
            done: list[Any] = []
            if self.running:
                done, _ = self.ray.wait(list(self.running), timeout=_LOOK)
            for line in mailbox.get_nowait_batch(mailbox.qsize()):
                self.observer.note(line)
            for reference in done:
                yield self._over(self._received(self.running.pop(reference), reference), len(tasks))
        self.observer.tasks(len(self.outcomes), len(tasks))

    def _begin(self, task: Task, mailbox: Any) -> None:
        options = {"num_cpus": self.cores, "max_retries": RETRIES, "name": task.name}
        remote = self.ray.remote(run_task).options(**options)
        self.running[remote.remote(task, pack(self.root, task.needs), mailbox)] = task

    def _received(self, task: Task, reference: Any) -> Outcome:
        """What a task came to, its files put in place."""
        try:
            delivery: Delivery = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:  # the task's own errors come back
            failed = HostError(
                "the task failed on its node, outside of its own work",
                where=task.name,
                got=last_line(error),
                hint=SAME_VERSION,
            )
            failed.__cause__ = error
            return Outcome(task, {}, failed)
        except self.ray.exceptions.RayError as error:
            lost = HostError(
                "the task was lost with its node",
                where=task.name,
                expected=f"a node that lives until it is done, at one of {RETRIES + 1} attempts",
                got=first_line(error),
                hint="see that the nodes stay on, and go on with --resume",
            )
            return Outcome(task, {}, lost)
        unpack(delivery.files, self.root, task.makes)
        return Outcome(task, delivery.told, delivery.error)

    def _over(self, outcome: Outcome, count: int) -> Outcome:
        self.outcomes[outcome.task.name] = outcome
        self.observer.note(f"{len(self.outcomes)} of {count} tasks are over: {outcome.task.name}")
        return outcome


@contextmanager
def _connected(address: str | None, devices: Sequence[str]) -> Iterator[Any]:
    """The package, connected to a cluster; one that is started here offers every device once."""
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(
            "a cluster needs the package ray", where="--ray", hint="run pip install 'hwprune[ray]'"
        ) from error
    if ray.is_initialized():  # by a program that uses the library: its connection is not ours to end
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=address or "auto", **quiet)
    except RuntimeError as error:  # there is one, of another version of Ray or Python
        raise HostError(
            "the cluster cannot be joined",
            where=address or "the cluster of this machine",
            got=first_line(error),
            hint="install the same versions of ray and Python here and on every node",
        ) from error
    except (ConnectionError, ValueError) as error:  # nobody there, or no address at all
        if address is not None:
            raise HostError(
                "there is no cluster at the address",
                where=address,
                got=first_line(error),
                hint="see that this works: ray status --address HOST:PORT",
            ) from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told what is done here
        # Without an address, one that was killed and has left its own behind would be looked for.
        ray.init(address="local", resources=dict.fromkeys(devices, 1.0), include_dashboard=False, **quiet)
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_devices(ray: Any, devices: Sequence[str]) -> None:
    offered: Mapping[str, float] = ray.cluster_resources()
    missing = [device for device in devices if offered.get(device, 0) < 1]
    if missing:
        raise InputError(
            "no node of the cluster offers the device",
            where=", ".join(missing),
            expected=f"a node started with: ray start ... --resources='{{\"{missing[0]}\": 1}}'",
            got=", ".join(sorted(name for name in offered if ":" not in name)),
        )


def _check_cores(ray: Any, cores: int) -> None:
    """Raises where no node has so many cores: its tasks would wait for ever."""
    most = int(max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0))
    if cores > most:
        raise InputError(
            "no node of the cluster has so many cores",
            where="--ray-cores",
            expected=f"at most {most}",
            got=cores,
        )


def _mailbox(ray: Any) -> Any:
    """A queue on this machine for the lines that the nodes tell."""
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
