"""Measurements of versions of a network, kept in the user's cache: equal runs see equal ones."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from platformdirs import user_cache_path

from hwprune.device.profile import DeviceProfile
from hwprune.files import write_json
from hwprune.graph.axes import BoolArray
from hwprune.groups.costs import Widths
from hwprune.operators import Operator
from hwprune.runtime.environment import environment, versions
from hwprune.runtime.patience import Patience
from hwprune.runtime.timing import Timing

#: How networks are timed: measurements that were made in another way are made anew.
_TIMED_AS = 2
#: What is kept of a timing.
_NUMBERS = ("median_us", "p10_us", "p90_us", "runs", "undisturbed_us")
#: Versions of one network: name to what is kept of each of its axes; nothing means all.
Versions = Mapping[str, Mapping[str, BoolArray]]


class Loop(Protocol):
    """Builds versions of one network and times them on the device."""

    @property
    def profile(self) -> DeviceProfile:
        """The device."""
        ...

    @property
    def patience(self) -> Patience:
        """Knows what the dense network takes where nothing disturbs the machine."""
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

    What something disturbed all the while is not kept: another run may be luckier. Kept per networks,
    runtime, versions, and model and cores of the processor. Which channels stay does not matter, only how
    many of every axis.

    Args:
        loop: Measures.
        operators: Fused operators of the dense network.
        networks: What to measure, with one named ``dense``.
    """
    known = recalled(loop, operators, networks)
    return known or kept(loop, operators, networks, loop.measure(networks))


def recalled(loop: Loop, operators: Sequence[Operator], networks: Versions) -> Measurement | None:
    """What a run before this one measured; ``None`` where none did. See :func:`measured_once`."""
    key = _key(loop.profile, operators, networks)
    known = _read(_path(key), networks)
    if known is None:
        return None
    loop.patience.know(known["dense"].undisturbed_us)
    return Measurement(known, key, reused=True)


def kept(
    loop: Loop, operators: Sequence[Operator], networks: Versions, timings: Mapping[str, Timing]
) -> Measurement:
    """Keeps what was measured for the runs to come, unless something disturbed it. See :func:`measured_once`.

    Args:
        loop: What the timings are of.
        operators: Fused operators of the dense network.
        networks: What was measured, with one named ``dense``.
        timings: Of these.
    """
    key = _key(loop.profile, operators, networks)
    if loop.patience.is_disturbed(timings):
        return Measurement(timings, key, reused=False)
    loop.patience.know(timings["dense"].undisturbed_us)
    numbers = {
        name: {part: float(getattr(timing, part)) for part in _NUMBERS} for name, timing in timings.items()
    }
    path = _path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"date": str(environment()["date"]), "timings": numbers})
    return Measurement(timings, key, reused=False)


def _read(path: Path, names: Iterable[str]) -> dict[str, Timing] | None:
    """The timings in a file; ``None`` where there is none or it is unreadable (it is only a cache)."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))["timings"]
        numbers = {name: {part: float(read[name][part]) for part in _NUMBERS} for name in names}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not all(math.isfinite(us) and us > 0 for timing in numbers.values() for us in timing.values()):
        return None
    return {
        name: Timing(**{**timing, "runs": int(timing["runs"])})  # type: ignore[arg-type]
        for name, timing in numbers.items()
    }


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
        _TIMED_AS,
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _path(key: str) -> Path:
    return user_cache_path("hwprune") / "measurements" / f"{key}.json"
