"""Times networks again while something else disturbs the machine, as long as that is worth the wait."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from hwprune.runtime.timing import Timing

#: Something disturbs the machine where the dense network takes longer by this part than it did before.
DISTURBED = 0.05
#: What may be spent on timing again: a part of the time that has gone by, and seconds at least and at most.
SHARE, LEAST_SECONDS, MOST_SECONDS = 0.3, 45.0, 300.0
#: The first pause before timing again, in seconds; every further one is twice as long.
FIRST_PAUSE = 5.0


class Patience:
    """Neighbours on a virtual machine slow it down for minutes on end, and not every network alike.

    Both the decision to time again and which timing counts are the dense network's: what the slim one takes
    has no say. What all timings of one process that are made again take, pauses included, stays within
    :data:`SHARE` of the time gone by, or :data:`LEAST_SECONDS`, as far as the last timing foretells the next.

    Args:
        notify: Called with one line for every timing that is made again.
        clock: Seconds that have gone by since any point in time.
        sleep: Waits for seconds.

    Attributes:
        spent: Seconds spent on timing again.
        usual_us: The least that the dense network is known to take; infinite where nothing is known.
    """

    def __init__(
        self,
        notify: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._notify, self._clock, self._sleep = notify, clock, sleep
        self._begun = clock()
        self.spent, self.usual_us = 0.0, math.inf

    def know(self, dense_us: float) -> None:
        """Notes what the dense network took, undisturbed, in any measurement."""
        self.usual_us = min(self.usual_us, dense_us)

    def is_disturbed(self, timings: Mapping[str, Timing]) -> bool:
        """Whether the dense network takes longer than it is known to."""
        return timings["dense"].undisturbed_us > (1 + DISTURBED) * self.usual_us

    def least_disturbed(self, measure: Callable[[], dict[str, Timing]]) -> dict[str, Timing]:
        """Times networks, again after ever longer pauses while something disturbs the machine.

        Args:
            measure: Times ``dense`` and any other networks alternately.

        Returns:
            The timing in which the dense network took least.
        """
        started = self._clock()
        timings, pause = [measure()], FIRST_PAUSE
        begun = self._clock()
        takes = begun - started
        while self.is_disturbed(timings[-1]):
            took = timings[-1]["dense"].undisturbed_us
            disturbed = f"the dense network took {took:.1f} us, and {self.usual_us:.1f} us before"
            if self.spent + (self._clock() - begun) + pause + takes > self._allowed():
                least = min(timing["dense"].undisturbed_us for timing in timings)
                self._notify(f"{disturbed}: the least disturbed timing counts, with {least:.1f} us")
                break
            self._notify(f"{disturbed}: something disturbs the machine, timing again in {pause:.0f} s")
            self._sleep(pause)
            pause *= 2
            timings.append(measure())
        self.spent += self._clock() - begun
        best = min(timings, key=lambda each: each["dense"].undisturbed_us)
        self.know(best["dense"].undisturbed_us)
        return best

    def _allowed(self) -> float:
        """Seconds that may be spent on timing again until now."""
        return min(max(SHARE * (self._clock() - self._begun), LEAST_SECONDS), MOST_SECONDS)
