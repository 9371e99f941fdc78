"""Times networks again while something else disturbs the machine, as long as that is worth the wait."""

from __future__ import annotations

import time
from collections.abc import Callable

from hwprune.runtime.timing import Timing

#: Something disturbs the machine where the dense network takes longer by this part than it did before.
DISTURBED = 0.05
#: What may be spent on timing again: a part of the time that has gone by, and seconds at least and at most.
SHARE, LEAST_SECONDS, MOST_SECONDS = 0.3, 30.0, 300.0
#: The first pause before timing again, in seconds; every further one is twice as long.
FIRST_PAUSE = 5.0


class Patience:
    """Neighbours on a virtual machine slow it down for minutes on end, and not every network alike.

    Both the decision to time again and which timing counts are the dense network's: what the slim one takes
    has no say. What is spent on all timings of one compression stays within :data:`SHARE` of its time.

    Args:
        notify: Called with one line for every timing that is made again.
        clock: Seconds that have gone by since any point in time.
        sleep: Waits for seconds.

    Attributes:
        spent: Seconds spent on timing again.
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
        self.spent = 0.0

    def least_disturbed(self, measure: Callable[[], dict[str, Timing]], usual_us: float) -> dict[str, Timing]:
        """Times networks, again after ever longer pauses while something disturbs the machine.

        Args:
            measure: Times ``dense`` and any other networks alternately.
            usual_us: What the dense network took undisturbed before; infinite where that is not known.

        Returns:
            The timing in which the dense network took least.
        """
        timings, begun, pause = [measure()], self._clock(), FIRST_PAUSE
        while (took := timings[-1]["dense"].undisturbed_us) > (1 + DISTURBED) * usual_us:
            disturbed = f"the dense network took {took:.1f} us, and {usual_us:.1f} us before"
            if self.spent + (self._clock() - begun) + pause > self._allowed():
                least = min(timing["dense"].undisturbed_us for timing in timings)
                self._notify(f"{disturbed}: the least disturbed timing counts, with {least:.1f} us")
                break
            self._notify(f"{disturbed}: something disturbs the machine, timing again in {pause:.0f} s")
            self._sleep(pause)
            pause *= 2
            timings.append(measure())
        self.spent += self._clock() - begun
        return min(timings, key=lambda each: each["dense"].undisturbed_us)

    def _allowed(self) -> float:
        """Seconds that may be spent on timing again until now."""
        return min(max(SHARE * (self._clock() - self._begun), LEAST_SECONDS), MOST_SECONDS)
