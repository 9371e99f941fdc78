"""Measurements of versions of a network, kept in the user's cache: equal runs see equal ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from platformdirs import user_cache_path

from hwprune.device.profile import DeviceProfile
from hwprune.files import write_json
from hwprune.graph.axes import BoolArray
from hwprune.groups.costs import Widths
from hwprune.operators import Operator
from hwprune.runtime.environment import versions
from hwprune.runtime.timing import Timing

#: Versions of one network: name to what is kept of each of its axes; nothing means all.
Versions = Mapping[str, Mapping[str, BoolArray]]


class Loop(Protocol):
    """Builds versions of one network and times them on the device."""

    @property
    def profile(self) -> DeviceProfile:
        """The device."""
        ...

    def measure(self, networks: Versions) -> dict[str, Timing]:
        """Times networks alternately in one run."""
        ...

    def kept(self, widths: Widths) -> Mapping[str, BoolArray]:
        """What is kept at certain widths."""
        ...


@dataclass(frozen=True, slots=True)
class Measurement:
    """Networks timed alternately in one run.

    Attributes:
        timings: Name to timing.
        key: Under which they are kept in the user's cache.
        reused: Whether an earlier run measured them.
    """

    timings: Mapping[str, Timing]
    key: str
    reused: bool


def measured_once(loop: Loop, operators: Sequence[Operator], networks: Versions) -> Measurement:
    """Times networks alternately, unless a run before this one did.

    Kept per networks, machine and runtime. Which channels stay does not matter, only how many of every axis.

    Args:
        loop: Measures.
        operators: Fused operators of the dense network.
        networks: What to measure.
    """
    key = _key(loop.profile, operators, networks)
    path = _path(key)
    if path.exists():
        try:
            read = json.loads(path.read_text())["timings"]
            return Measurement({name: Timing(**read[name]) for name in networks}, key, reused=True)
        except (ValueError, KeyError, TypeError):
            path.unlink()  # a cache: measured again below
    timings = loop.measure(networks)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"timings": {name: asdict(timing) for name, timing in timings.items()}})
    return Measurement(timings, key, reused=False)


def forget(keys: Iterable[str]) -> None:
    """Removes measurements from the user's cache: they are made anew when they are asked for next.

    Args:
        keys: Of :class:`Measurement`; what is not there is passed over.
    """
    for key in keys:
        _path(key).unlink(missing_ok=True)


def _key(profile: DeviceProfile, operators: Sequence[Operator], networks: Versions) -> str:
    hardware = profile.hardware
    described = [
        [str(replace(operator, name="")) for operator in operators],
        # Equal widths of other axes are another network.
        {name: [(axis, int(mask.sum())) for axis, mask in kept.items()] for name, kept in networks.items()},
        profile.runtime.model_dump(mode="json"),
        [hardware.model, hardware.isa, str(hardware.cores)],
        # Both have a say in what is exported.
        [versions().get(package, "") for package in ("hwprune", "torch")],
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _path(key: str) -> Path:
    return user_cache_path("hwprune") / "measurements" / f"{key}.json"
