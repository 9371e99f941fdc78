"""How strong the penalty is at each step, and when the support is settled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

from hwprune.errors import InputError
from hwprune.penalties.base import check_number

#: The strengths of all steps add up to at least this much: what the envelope takes from a group's norm
#: grows with their sum, so short trainings need more per step than long ones.
TOTAL_STRENGTH = 12.0
#: Bounds of the strength of one step (method notes: 0.01-0.02 on a few thousand steps).
LEAST_STRENGTH, GREATEST_STRENGTH = 0.01, 0.25
#: Fractions of a fine-tuning after which a pull is full, and after which the survivors are fixed.
TRAINED_FULL, TRAINED_SETTLE = 0.1, 0.25
#: Granularity and penalties that need no pull where the weights are trained already.
SETTLED_AT_ONCE = (("channel", "channel+branch"), ("envelope", "magnitude"))
#: Penalties that say themselves that groups go by their norms.
BY_NORM = ("magnitude", "hard-threshold")


@dataclass(frozen=True, slots=True)
class StrengthSchedule:
    """Nothing at first, then a linear ramp to a constant strength, then a settled support.

    Attributes:
        total_steps: Steps of the whole training.
        start: Fraction of the steps after which the ramp starts.
        full: Fraction at which it reaches its peak.
        settle: Fraction at which the survivors are fixed; the rest trains them undisturbed.
        peak: Strength per step on the plateau; ``None`` chooses it from the number of steps.

    Raises:
        InputError: If the fractions are not ``0 <= start <= full < settle <= 1``, the number of steps is not
            whole and positive, or the peak is negative or not finite.

    >>> schedule = StrengthSchedule(total_steps=1000, peak=0.02)
    >>> [round(schedule.strength(step), 6) for step in (50, 250, 500)]
    [0.0, 0.01, 0.02]
    """

    total_steps: int
    start: float = 0.1
    full: float = 0.4
    settle: float = 0.6
    peak: float | None = None

    def __post_init__(self) -> None:
        check_steps(self.total_steps)
        for name in ("start", "full", "settle"):
            check_number(name, getattr(self, name), "StrengthSchedule")
        if self.peak is not None:
            check_number("peak", self.peak, "StrengthSchedule")
            if not 0 <= self.peak < math.inf:
                raise InputError(
                    "the peak must be finite and not negative",
                    where="StrengthSchedule",
                    expected="[0, inf)",
                    got=self.peak,
                )
        if not 0 <= self.start <= self.full < self.settle <= 1:
            raise InputError(
                "the fractions of the schedule are out of order",
                expected="0 <= start <= full < settle <= 1",
                got=(self.start, self.full, self.settle),
            )

    @classmethod
    def from_trained(cls, total_steps: int, *, pull: bool = False) -> StrengthSchedule:
        """A schedule for a network that is trained already.

        Its weights tell what it needs: the survivors are fixed in the first step, and all other steps are
        left to recover. A pull before that costs more than it finds: on a thin VGG-16 to be made three times
        as fast in 188 steps, settling at once was ahead of a pull over the first quarter by 3 points in the
        mean of three seeds (``docs/ablation.md``).

        Args:
            total_steps: Steps of the fine-tuning.
            pull: Let the penalty pull all the same, over the first quarter.

        >>> StrengthSchedule.from_trained(100).settle_step, StrengthSchedule.from_trained(100).strength(1)
        (1, 0.0)
        >>> StrengthSchedule.from_trained(100, pull=True).settle_step
        25
        """
        if pull:
            return cls(total_steps, start=0.0, full=TRAINED_FULL, settle=TRAINED_SETTLE)
        return cls(total_steps, start=0.0, full=0.0, settle=0.5 / total_steps, peak=0.0)

    @property
    def settle_step(self) -> int:
        """The step after which the survivors are fixed; at least 1."""
        return max(1, round(self.settle * self.total_steps))

    @property
    def plateau(self) -> float:
        """Strength per step once the ramp is done."""
        if self.peak is not None:
            return self.peak
        effective_steps = self.total_steps * (self.settle - (self.start + self.full) / 2)
        return min(max(TOTAL_STRENGTH / effective_steps, LEAST_STRENGTH), GREATEST_STRENGTH)

    def at_plateau(self, step: int) -> bool:
        """Whether the strength has reached its peak at ``step``."""
        return step / self.total_steps >= self.full

    def slack(self, step: int) -> float:
        """Fraction of what exceeds the budget that may still live at ``step``: 1 before the ramp, then 0.

        ``(1 - x)^3``, fast at first, while what goes is not missed; ``x`` runs from the start of the ramp to
        midway between its end and the settling.

        Source: Zhu and Gupta, To prune, or not to prune, 2017, arXiv 1710.01878, equation 1.

        >>> schedule = StrengthSchedule(total_steps=1000)
        >>> [schedule.slack(step) for step in (100, 300, 500, 600)]
        [1.0, 0.125, 0.0, 0.0]
        """
        end = (self.full + self.settle) / 2
        progress = (step / self.total_steps - self.start) / (end - self.start)
        return (1 - min(max(progress, 0.0), 1.0)) ** 3

    def strength(self, step: int) -> float:
        """Strength at ``step`` (from 1 to ``total_steps``); 0 before the ramp."""
        progress = step / self.total_steps
        if progress <= self.start:
            return 0.0
        if self.at_plateau(step):
            return self.plateau
        return self.plateau * (progress - self.start) / (self.full - self.start)


def check_steps(total_steps: object) -> None:
    """Raises :class:`InputError` unless it is a whole number of at least 1."""
    if not isinstance(total_steps, Integral) or total_steps < 1:
        raise InputError(
            "no number of training steps",
            where="total_steps",
            expected="a whole number >= 1",
            got=total_steps,
        )


def needs_pull(granularity: str, penalty: str) -> bool:
    """Whether groups of a trained network need a pull before they are chosen.

    Few channels go, and the trained weights tell which; of single weights and the like nearly all go, which
    takes a pull, and so do penalties that somebody asked for by name.

    Args:
        granularity: What a group is.
        penalty: Which penalty drives the groups.

    >>> needs_pull("channel", "envelope"), needs_pull("weight", "envelope"), needs_pull("channel", "halo")
    (False, True, True)
    """
    granularities, penalties = SETTLED_AT_ONCE
    return granularity not in granularities or penalty not in penalties
