"""Where a profile is built: what is measured counts only on a quiet machine, and is kept at once.

A look at a reference kernel tells when the processor is disturbed. It does not tell when a neighbour takes
the memory or the last level of cache: against that, everything is measured in several passes, and of each row
and network the least disturbed measurement counts.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import mul
from pathlib import Path

from torch import Tensor, nn

from hwprune.device.profile import DeviceProfile, RuntimeSpec
from hwprune.device.rows import Row
from hwprune.device.steps import Steps
from hwprune.operators import Operator
from hwprune.runtime.export import export
from hwprune.runtime.partial import PartialBuild
from hwprune.runtime.sampling import Progress, files, measure_operators
from hwprune.runtime.staircase import find_steps
from hwprune.runtime.steady import Watch
from hwprune.runtime.timing import measure


class Workbench:
    """Measures what is not measured yet, and remembers it.

    Args:
        partial: What is measured already; filled in place.
        watch: Says what counts.
        progress: Called with the number of rows done and known to be needed so far, over the whole build.
    """

    def __init__(self, partial: PartialBuild, watch: Watch, progress: Progress | None = None) -> None:
        self._partial, self._watch, self._progress = partial, watch, progress
        self._rows, self._networks = set(partial.rows), set(partial.networks)  # of this pass

    @property
    def passes(self) -> int:
        """Further passes over all rows that are complete."""
        return self._partial.passes

    @passes.setter
    def passes(self, number: int) -> None:
        self._partial.passes = number
        self.save(now=True)

    def rows_again(self, spec: RuntimeSpec) -> None:
        """Measures once more every row that is known; the less disturbed measurement of each counts."""
        self._rows.clear()
        for size in dict.fromkeys(size for size, _ in self._partial.rows):
            alike = [operator for known, operator in self._partial.rows if known == size]
            self.rows(alike, spec, working_set=size)

    def networks_again(self) -> None:
        """Lets every network be measured once more when it is asked for next."""
        self._networks.clear()

    def save(self, *, now: bool = False) -> None:
        """Keeps what is measured, and whether the machine was busy; see :meth:`PartialBuild.save`."""
        self._partial.busy = self._watch.busy
        self._partial.save(now=now)

    def rows(
        self,
        operators: Sequence[Operator],
        spec: RuntimeSpec,
        progress: Progress | None = None,
        *,
        working_set: int,
    ) -> tuple[Row, ...]:
        """Rows as :func:`~hwprune.runtime.sampling.measure_operators` gives them, file by file."""
        known, operators = self._partial.rows, [replace(operator, name="") for operator in operators]
        missing = [each for each in dict.fromkeys(operators) if (working_set, each) not in self._rows]
        left = len(missing)
        for chunk in files(missing, working_set):
            fresh = self._watch.measure(measuring(chunk, spec, working_set), _scaled)
            for row in fresh:
                key = working_set, row.operator
                known[key] = min(known.get(key, row), row, key=lambda each: each.undisturbed_us)
                self._rows.add(key)
            self.save()
            left -= len(chunk)
            if self._progress is not None:
                self._progress(len(self._rows), len(self._rows) + left)
        return tuple(known[working_set, operator] for operator in operators)

    def steps(self, probe: Operator, spec: RuntimeSpec) -> Steps:
        """The staircase of a probe."""
        if probe not in self._partial.steps:
            self._partial.steps[probe] = self._watch.measure(lambda: find_steps(probe, spec))
            self.save()
        return self._partial.steps[probe]

    def network_us(
        self, model: nn.Module, example: Tensor, operators: Sequence[Operator], profile: DeviceProfile
    ) -> float:
        """The measured latency of a whole network in microseconds, undisturbed.

        Args:
            model: The network.
            example: An example input.
            operators: Its operators, by which it is known again.
            profile: Runtime, threads and batch.
        """
        digest, known = hashlib.sha256(repr(tuple(operators)).encode()).hexdigest(), self._partial.networks
        if digest not in self._networks:
            with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
                path = Path(folder) / "network.onnx"
                export(model, path, example, batch=profile.runtime.batch)
                latency_us = self._watch.measure(lambda: measure(path, profile).undisturbed_us, mul)
            known[digest] = min(latency_us, known.get(digest, math.inf))
            self._networks.add(digest)
            self.save()
        return known[digest]


def measuring(
    chunk: Sequence[Operator], spec: RuntimeSpec, working_set: int
) -> Callable[[], tuple[Row, ...]]:
    """A function that measures the operators of one file."""
    return lambda: measure_operators(chunk, spec, working_set=working_set)


def _scaled(rows: tuple[Row, ...], factor: float) -> tuple[Row, ...]:
    return tuple(row.scaled(factor) for row in rows)
