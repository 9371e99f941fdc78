"""Where measurements are made: this machine, or one that somebody else asks for them."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
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


THIS_MACHINE = ThisMachine()
#: The name of the network that others are compared with.
DENSE = "dense"


class ExportedOnce:
    """Holds the dense network's file while versions of it are timed again and again, in a temporary folder.

    Exporting takes longer than timing, and latency does not depend on what its weights have become.
    """

    def __init__(self) -> None:
        folder = tempfile.mkdtemp(prefix="hwprune-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.dense = Path(folder) / "dense.onnx"


def export_and_time(
    networks: Mapping[str, nn.Module],
    example_inputs: ExampleInputs,
    profile: DeviceProfile,
    bench: Bench,
    runs: int | None = None,
    exported: ExportedOnce | None = None,
) -> dict[str, Timing]:
    """Exports networks and times them alternately.

    Args:
        networks: Name to network, each called with the same inputs.
        example_inputs: What they are exported with.
        profile: Says runtime, threads, batch and precision.
        bench: What is measured on.
        runs: Timed runs of each; see :meth:`Bench.time`.
        exported: Holds the dense network, which is exported where it does not yet.

    Returns:
        Name to timing.
    """
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        paths = {name: Path(folder) / f"{number}.onnx" for number, name in enumerate(networks)}
        if exported is not None and DENSE in networks:
            paths[DENSE] = exported.dense
        for name, network in networks.items():
            if not paths[name].exists():
                export(network, paths[name], example_inputs, batch=profile.runtime.batch)
        return bench.time(paths, profile, runs)
