"""Where measurements are made: this machine, or one that somebody else asks for them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from torch import nn

from hwprune.device.profile import DeviceProfile
from hwprune.graph.record import ExampleInputs
from hwprune.operators import Operator
from hwprune.runtime.export import export
from hwprune.runtime.local import localize
from hwprune.runtime.timing import Timing, measure_alternately


class Bench(Protocol):
    """A device that networks are measured on. It is asked several times during one compression."""

    def localize(
        self, profile: DeviceProfile, operators: Sequence[Operator], *, notify: Callable[[str], None]
    ) -> DeviceProfile:
        """The profile made true for the device; see :func:`hwprune.runtime.local.localize`.

        Args:
            profile: The device asked for.
            operators: Fused operators of the dense network.
            notify: Called with one line for everything the user should know.
        """
        ...

    def time(
        self, paths: Mapping[str, Path], profile: DeviceProfile, runs: int | None = None
    ) -> dict[str, Timing]:
        """Times ONNX files alternately; see :func:`hwprune.runtime.timing.measure_alternately`.

        Args:
            paths: Name to file, here.
            profile: Says runtime, threads, batch and precision.
            runs: Timed runs of each; by default as many as the medians need to be certain.

        Returns:
            Name to timing.
        """
        ...

    def wait(self, seconds: float) -> None:
        """Waits before something is timed again, out of the way of whoever else measures.

        Args:
            seconds: How long.
        """
        ...


class ThisMachine:
    """Measures where it is called."""

    def localize(
        self, profile: DeviceProfile, operators: Sequence[Operator], *, notify: Callable[[str], None]
    ) -> DeviceProfile:
        """See :meth:`Bench.localize`."""
        return localize(profile, operators, notify=notify)

    def time(
        self, paths: Mapping[str, Path], profile: DeviceProfile, runs: int | None = None
    ) -> dict[str, Timing]:
        """See :meth:`Bench.time`."""
        return measure_alternately(paths, profile, runs)

    def wait(self, seconds: float) -> None:
        """See :meth:`Bench.wait`."""
        time.sleep(seconds)


THIS_MACHINE = ThisMachine()
#: The name of the network that others are compared with.
DENSE = "dense"


class Exports:
    """Exports versions of a network to be timed, the dense one once.

    Exporting takes longer than timing, and latency does not depend on what the dense network's weights have
    become meanwhile. Its file is held in memory.
    """

    def __init__(self) -> None:
        self._dense: bytes | None = None

    @contextmanager
    def files(
        self, networks: Mapping[str, nn.Module], example_inputs: ExampleInputs, profile: DeviceProfile
    ) -> Iterator[dict[str, Path]]:
        """Exports networks into a temporary folder.

        Args:
            networks: Name to network, each called with the same inputs; :data:`DENSE` is the same every time.
            example_inputs: What they are exported with.
            profile: Says the batch where a network fixes it.

        Yields:
            Name to file; they are gone afterwards.
        """
        with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
            paths = {name: Path(folder) / f"{number}.onnx" for number, name in enumerate(networks)}
            for name, network in networks.items():
                if name == DENSE and self._dense is not None:
                    paths[name].write_bytes(self._dense)
                else:
                    export(network, paths[name], example_inputs, batch=profile.runtime.batch)
                if name == DENSE:
                    self._dense = paths[name].read_bytes()
            yield paths
