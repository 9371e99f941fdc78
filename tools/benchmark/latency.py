"""Lands networks on a measured latency: a stopwatch beside the dense network, and the search for a ratio."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from hwprune.device.profile import DeviceProfile
from hwprune.errors import HwpruneError
from hwprune.runtime.bench import ThisMachine
from hwprune.runtime.export import export
from hwprune.runtime.timing import Timing, measure_alternately

#: A network may be this much faster than was asked for, and not slower.
TOLERANCE = 0.03
#: Ratios that are tried at most.
MOST_TRIES = 9
#: Timed runs of a network in the search.
RUNS = 1500


class UndisturbedBench(ThisMachine):
    """Measures here, and takes what runs take undisturbed for the median: as everybody is judged."""

    def time(
        self, paths: Mapping[str, Path], profile: DeviceProfile, runs: int | None = None
    ) -> dict[str, Timing]:
        """See :meth:`hwprune.runtime.bench.Bench.time`."""
        timings = super().time(paths, profile, runs)
        return {name: replace(timing, median_us=timing.undisturbed_us) for name, timing in timings.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Stopwatch:
    """Times networks beside the dense one.

    Attributes:
        dense: File of the dense network.
        profile: The device.
        example: What networks are exported with.
    """

    dense: Path
    profile: DeviceProfile
    example: Tensor

    def speedup(self, network: nn.Module) -> float:
        """How many times faster than the dense network, both timed alternately.

        Undisturbed runs are compared: other work on the machine makes runs slower, never faster, and slows
        small networks down by more than large ones.
        """
        with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
            path = Path(folder) / "network.onnx"
            export(network, path, self.example)
            timings = measure_alternately({"dense": self.dense, "network": path}, self.profile, RUNS)
        return timings["dense"].undisturbed_us / timings["network"].undisturbed_us


def land(build: Callable[[float], nn.Module], stopwatch: Stopwatch, target: float) -> tuple[nn.Module, float]:
    """Finds by bisection the largest fraction whose network is fast enough.

    Args:
        build: From a fraction in (0, 1] to a network; more is slower, up to rounding.
        stopwatch: Measures.
        target: How many times faster than dense.

    Returns:
        The network that is fast enough by the least, and its fraction.

    Raises:
        HwpruneError: If no network that was tried is fast enough.
    """
    low, high = 0.0, 1.0
    best: tuple[float, nn.Module, float] | None = None
    for _ in range(MOST_TRIES):
        fraction = (low + high) / 2
        network = build(fraction)
        reached = stopwatch.speedup(network)
        if reached < target:
            high = fraction
            continue
        low = fraction
        if best is None or reached < best[0]:
            best = (reached, network, fraction)
        if reached <= target * (1 + TOLERANCE):
            break
    if best is None:
        raise HwpruneError(f"no ratio that was tried makes the network {target:g} times faster")
    return best[1], best[2]
