"""Whether the machine is as fast now as it was: a reference kernel, timed again and again.

Processors raise and lower their clock by some percent within seconds, by how warm they are and how much
their other cores have to do. The kernel tells the clock, because it lives in the caches of its core and is
bound by arithmetic: what was measured while it took longer or shorter is scaled to the pace of the first
looks, or of the table that is added to or checked. What memory alone bounds does not follow the clock, and is
then off by that much.
"""

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
from hwprune.runtime.undisturbed import undisturbed

#: What is timed: no fused sum, on a map and at widths that every runtime has a fast kernel for.
REFERENCE = Operator("conv", 64, 64, 28, 28, 3, 3, padding=1)
#: What the reference kernel takes undisturbed differs by more than this from one third of a build to another,
#: or from what it took when the rows were measured that are added to, where the machine was busy, or slowed
#: down by more than a clock does.
STEADY = 0.25
#: Looks before and after a measurement are further apart than this where the clock moved meanwhile.
MOVED = 0.03
#: A look that is slower than usual by more than this shows a disturbance, unless the next one agrees with it.
DISTURBED = 0.1
#: Timed runs of one look at the machine, those before them, looks at first, and looks that "usual" refers to.
RUNS, WARMUP_RUNS, FIRST_LOOKS, RECENT_LOOKS = 200, 5, 9, 50
#: Seconds to wait before each further look until the machine has calmed down.
WAITS = (0.3, 1.0, 3.0, 10.0, 20.0, 30.0)
#: How often something is measured before the machine is given up, and at most where the clock moves.
ATTEMPTS, MOVES = 8, 4

STOP_OTHERS = (
    "stop what else is running and give the same command again, which goes on from there; --allow-busy "
    "measures regardless, and the profile says so"
)

Result = TypeVar("Result")


@dataclass(slots=True)
class Watch:
    """Measures while nothing disturbs the machine, and says whether it stayed as it was.

    Attributes:
        look_us: Times the reference kernel, in microseconds.
        notify: Called with one line whenever something has to be measured again.
        allow_busy: Whether to go on regardless.
        seen_us: What :attr:`look_us` said at first and after every measurement that counts.
        busy: Whether the machine was busy and that was allowed.
        base_us: What the reference kernel takes at the pace that results are scaled to; by default what it
            took at first.
        wait: Waits so many seconds.
    """

    look_us: Callable[[], float]
    notify: Callable[[str], None]
    allow_busy: bool = False
    seen_us: list[float] = field(default_factory=list)
    busy: bool = False
    base_us: float | None = None
    wait: Callable[[float], None] = time.sleep
    _last_us: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._last_us = self.seen_us[-1] if self.seen_us else 0.0

    @property
    def reference_us(self) -> float:
        """What the reference kernel takes at the pace of what :meth:`measure` returns."""
        return self.base_us or statistics.median(self.seen_us[:FIRST_LOOKS])

    @property
    def usual_us(self) -> float:
        """The median of the recent looks."""
        return statistics.median(self.seen_us[-RECENT_LOOKS:])

    def begin(self, before_us: float | None = None) -> None:
        """Looks at the machine for the first time.

        Args:
            before_us: What the reference kernel took when the measurements were made that these are added to.

        Raises:
            ProfileError: If it does not take as long now.
        """
        for pause in (0.0, *WAITS):
            self.wait(pause)
            looks = [self.look_us() for _ in range(FIRST_LOOKS)]
            if before_us is None or apart([before_us, statistics.median(looks)]) <= STEADY:
                break
        else:
            self._refuse(
                "the machine is not as fast as when the measurements were made that these would be added to",
                before_us,
                STEADY,
                looks,
            )
        self.seen_us += looks
        self._last_us = looks[-1]

    def measure(
        self, measure: Callable[[], Result], at_pace: Callable[[Result, float], Result] | None = None
    ) -> Result:
        """What ``measure`` returns, once nothing disturbed the machine right after it.

        Args:
            measure: Measures something. It is asked again where the clock has moved meanwhile.
            at_pace: Multiplies the durations of a result by a factor; by default they stay.

        Raises:
            ProfileError: If something disturbs it time and again.
        """
        looks, moves = list[float](), 0
        while True:
            before = self._last_us
            result = measure()
            look, calm = self._look()
            if calm or self.allow_busy:
                pace = self.reference_us / ((before + look) / 2 if calm else self.usual_us)
                self.busy = self.busy or not calm
                self.seen_us.append(look)
                moves += 1
                if calm and apart([before, look]) > MOVED and moves < MOVES:
                    continue
                return result if at_pace is None else at_pace(result, pace)
            looks.append(look)
            self.notify(
                f"the reference kernel took {look:.1f} us instead of {self.usual_us:.1f} us: "
                "something disturbed the machine, measuring again"
            )
            if len(looks) == ATTEMPTS or not self._calms_down(looks):
                what = "the machine is busy: a reference kernel is slower time and again"
                self._refuse(what, self.usual_us, DISTURBED, looks)

    def finish(self, again: str = "with --anew") -> None:
        """Judges whether the machine stayed as it was.

        Args:
            again: How all of it is measured again, for the message.

        Raises:
            ProfileError: If the reference kernel took longer or shorter in one third of the build than in
                another.
        """
        medians = [statistics.median(part) for part in thirds(self.seen_us)]
        if apart(medians) > STEADY:
            self._refuse(
                "the machine was busy: a reference kernel did not take the same time at the start, in the "
                "middle and at the end",
                medians[0],
                STEADY,
                medians,
                f"measure again {again}, or take what was measured as it is with --allow-busy: the "
                "profile says so then",
            )

    def _calms_down(self, looks: list[float]) -> bool:
        """Waits for it; adds to the looks where it does not."""
        waited = []
        for pause in WAITS:
            self.wait(pause)
            look, calm = self._look()
            if calm:
                return True
            waited.append(look)
        looks += waited
        return False

    def _look(self) -> tuple[float, bool]:
        """One more look, and whether it is calm: as fast as usual, or as the last one and a clock may be."""
        before, self._last_us = self._last_us, self.look_us()
        as_usual = self._last_us <= (1 + DISTURBED) * self.usual_us
        lasts = before > 0 and apart([before, self._last_us]) <= MOVED
        return self._last_us, as_usual or (lasts and apart([self.reference_us, self._last_us]) <= STEADY)

    def _refuse(
        self,
        what: str,
        wanted: float | None,
        tolerance: float,
        looks: Sequence[float],
        hint: str = STOP_OTHERS,
    ) -> None:
        if self.allow_busy:
            self.busy = True
            return
        raise ProfileError(
            what,
            expected=f"{wanted:.1f} us within {tolerance:.0%}",
            got=", ".join(f"{look:.1f} us" for look in looks),
            hint=hint,
        )


def apart(values: Sequence[float]) -> float:
    """How far the largest of positive values is above the smallest, as a fraction.

    >>> apart([100.0, 125.0, 110.0])
    0.25
    """
    return max(values) / min(values) - 1


def thirds(values: Sequence[float]) -> tuple[Sequence[float], ...]:
    """A sequence of at least three values in three parts of about the same size.

    >>> thirds([1.0, 2.0, 3.0, 4.0])
    ([1.0], [2.0], [3.0, 4.0])
    """
    first, second = len(values) // 3, 2 * len(values) // 3
    return values[:first], values[first:second], values[second:]


@contextmanager
def reference_kernel(spec: RuntimeSpec) -> Iterator[Callable[[], float]]:
    """Yields a function that times the reference kernel once more: undisturbed, in microseconds.

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
            return undisturbed(durations)

        yield look_us
