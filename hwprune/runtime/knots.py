"""Where to measure: widths found by bisection instead of a sweep."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from hwprune.device.steps import Steps

#: An interval is split where its measured middle is off the straight line by more than this fraction, and by
#: more than so many microseconds: the smallest kernels are known no better.
TOLERANCE, TOLERANCE_US = 0.03, 0.2
#: Widths below the first multiple of eight that are measured where channels have no step of their own.
SMALL_WIDTHS = (1, 2, 4)
#: Spacing of the widths considered where channels have no step of their own.
SPACING = 8


@dataclass(slots=True)
class Curve:
    """Latencies over widths that may be interpolated between, as far as they are measured.

    Attributes:
        lattice: The widths that can occur, ascending.
        measured: Position on the lattice to microseconds.
        open: Intervals whose middle is still to be judged, as positions on the lattice.
    """

    lattice: Sequence[int]
    measured: dict[int, float] = field(default_factory=dict)
    open: list[tuple[int, int]] = field(default_factory=list)

    def start(self) -> list[int]:
        """The first positions to measure: the ends, the middle and the middles of both halves."""
        last = len(self.lattice) - 1
        knots = sorted({0, last // 2, last})
        self.open = [pair for pair in itertools.pairwise(knots) if pair[1] - pair[0] > 1]
        return sorted({*knots, *map(_middle, self.open)})

    def advance(self) -> list[int]:
        """Judges the measured middles; the positions to measure next, empty when nothing is left."""
        still_open = []
        for low, high in self.open:
            middle = _middle((low, high))
            span = self.lattice[high] - self.lattice[low]
            part = (self.lattice[middle] - self.lattice[low]) / span
            straight = self.measured[low] + part * (self.measured[high] - self.measured[low])
            if abs(self.measured[middle] - straight) > max(TOLERANCE * self.measured[middle], TOLERANCE_US):
                still_open += [(low, middle), (middle, high)]
        self.open = [pair for pair in still_open if pair[1] - pair[0] > 1]
        return sorted({_middle(pair) for pair in self.open} - self.measured.keys())

    @property
    def widths(self) -> list[int]:
        """The measured widths, ascending."""
        return [self.lattice[position] for position in sorted(self.measured)]


def _middle(interval: tuple[int, int]) -> int:
    return (interval[0] + interval[1]) // 2


def lattice(width: int, steps: Steps) -> list[int]:
    """Widths that are considered for measuring: whole steps below ``width``, and ``width``.

    Of a single step, its parts in which channels leave. Where channels have no step of their own, a few small
    ones and multiples of eight.

    >>> lattice(20, Steps(8)), lattice(8, Steps(8, divisor=4)), lattice(20, Steps())
    ([8, 16, 20], [4, 8], [1, 2, 4, 8, 16, 20])
    """
    if steps.align > 1:
        return steps.narrower(width)
    return [*(small for small in SMALL_WIDTHS if small < width), *range(SPACING, width, SPACING), width]


def curves(widths: Iterable[int], steps: Steps) -> list[Curve]:
    """One curve per place in the period of the staircase.

    Args:
        widths: The full widths that operators of one kind have.
        steps: The staircase.

    >>> [curve.lattice for curve in curves([48], Steps(8, 32))]
    [[8, 40], [16, 48], [24], [32]]
    >>> [curve.lattice for curve in curves([8, 16], Steps(8, divisor=4))]
    [[4], [8, 16]]
    """
    places: dict[int, list[int]] = {}
    for channels in sorted({channels for width in widths for channels in lattice(width, steps)}):
        places.setdefault(channels % steps.cycle, []).append(channels)
    return [Curve(widths) for widths in places.values()]


Key = TypeVar("Key", bound=Hashable)


def bisect(
    curves: Mapping[Key, Curve],
    measure: Callable[[Sequence[tuple[Key, int]]], Sequence[float]],
    in_time: Callable[[], bool] = lambda: True,
) -> None:
    """Measures all curves, in rounds shared by all of them, until every interval is straight.

    Args:
        curves: Filled in place.
        measure: Latencies, in microseconds, of ``(key, width)`` pairs.
        in_time: Asked before every round but the first; ends the search when it says no.
    """
    wanted = [(key, position) for key, curve in curves.items() for position in curve.start()]
    while wanted:
        latencies = measure([(key, curves[key].lattice[position]) for key, position in wanted])
        for (key, position), latency in zip(wanted, latencies, strict=True):
            curves[key].measured[position] = latency
        if not in_time():
            break
        wanted = [(key, position) for key, curve in curves.items() for position in curve.advance()]
