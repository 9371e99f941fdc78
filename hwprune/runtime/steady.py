"""Whether the machine is as fast now as it was: a reference kernel, timed again and again."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hwprune.device.profile import RuntimeSpec
from hwprune.errors import ProfileError
from hwprune.operators import Operator
from hwprune.runtime.base import get_runtime
from hwprune.runtime.operator_models import make_operator_model

#: What is timed: no fused sum, on a map and at widths that every runtime has a fast kernel for.
REFERENCE = Operator("conv", 64, 64, 28, 28, 3, 3, padding=1)
#: A machine whose reference kernel is slower or faster than at first by more than this is busy.
STEADY = 0.05
#: Timed runs of one look at the machine, those before them, and looks that make the first value.
RUNS, WARMUP_RUNS, FIRST_LOOKS = 60, 5, 9
#: Seconds to wait for the machine to calm down before each further look.
WAITS = (1.0, 3.0, 10.0, 20.0, 30.0)
#: How often something is measured before the machine is given up.
ATTEMPTS = 6

Result = TypeVar("Result")


@dataclass(slots=True)
class Watch:
    """Measures only while the machine is as fast as it was at first.

    Attributes:
        look_us: Times the reference kernel, in microseconds.
        notify: Called with one line whenever something has to be measured again.
        first_us: What the kernel took at first; set by :meth:`begin`.
        allow_busy: Whether to go on regardless.
        seen_us: Everything that :attr:`look_us` said right after a measurement that counts.
        busy: Whether a measurement counts although the machine was busy.
        wait: Waits so many seconds.
    """

    look_us: Callable[[], float]
    notify: Callable[[str], None]
    allow_busy: bool = False
    first_us: float = 0.0
    seen_us: list[float] = field(default_factory=list)
    busy: bool = False
    wait: Callable[[float], None] = time.sleep

    def begin(self, before_us: float | None = None) -> None:
        """Looks at the machine for the first time.

        Args:
            before_us: What the reference kernel took when the measurements began that these continue.

        Raises:
            ProfileError: If several looks do not agree, with each other or with that.
        """
        for pause in (0.0, *WAITS):
            self.wait(pause)
            looks = [self.look_us() for _ in range(FIRST_LOOKS)]
            median = statistics.median(looks)
            self.first_us = before_us or median
            if self._agrees(median) and 3 * sum(map(self._agrees, looks)) >= 2 * len(looks):
                return
            if self.allow_busy:
                self.busy, self.first_us = True, median
                return
        raise self._is_busy(looks)

    def measure(self, measure: Callable[[], Result]) -> Result:
        """What ``measure`` returns, once the machine was as fast right after it as at first.

        Raises:
            ProfileError: If it stays busy, or is time and again.
        """
        looks: list[float] = []
        while len(looks) < ATTEMPTS:
            result = measure()
            looks.append(self.look_us())
            agrees = self._agrees(looks[-1])
            if agrees or self.allow_busy:
                self.busy = self.busy or not agrees
                self.seen_us.append(looks[-1])
                return result
            self.notify(
                f"the reference kernel took {looks[-1]:.1f} us instead of {self.first_us:.1f} us: "
                "the machine is busy, measuring again"
            )
            self._wait_until_calm(looks[-1])
        raise self._is_busy(looks)

    def _wait_until_calm(self, look: float) -> None:
        looks = [look]
        for pause in WAITS:
            self.wait(pause)
            looks.append(self.look_us())
            if self._agrees(looks[-1]):
                return
        raise self._is_busy(looks)

    def _agrees(self, look: float) -> bool:
        return max(look, self.first_us) <= (1 + STEADY) * min(look, self.first_us)

    def _is_busy(self, looks: Sequence[float]) -> ProfileError:
        return ProfileError(
            "the machine is busy: a reference kernel does not take the same time throughout",
            expected=f"{self.first_us:.1f} us within {STEADY:.0%}",
            got=", ".join(f"{look:.1f} us" for look in looks),
            hint="stop what else is running and give the same command again, which goes on from there "
            "(--anew forgets what was measured, --allow-busy measures regardless)",
        )


@contextmanager
def reference_kernel(spec: RuntimeSpec) -> Iterator[Callable[[], float]]:
    """Yields a function that times the reference kernel once more: the median, in microseconds.

    Args:
        spec: Runtime, threads and batch.

    Raises:
        RuntimeUnavailableError: If the runtime is missing.
    """
    model = make_operator_model([REFERENCE], spec.batch)
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        path = Path(folder) / "reference.onnx"
        path.write_bytes(model.content)
        session = get_runtime(spec.kind).open(path, spec)

        def look_us() -> float:
            for _ in range(WARMUP_RUNS):
                session.run(model.feed)
            durations = []
            for _ in range(RUNS):
                start = time.perf_counter_ns()
                session.run(model.feed)
                durations.append((time.perf_counter_ns() - start) / 1e3)
            return statistics.median(durations)

        yield look_us
