"""What a user asks for: a speed-up, a latency, a fraction or a number of groups."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwprune.errors import InputError


def in_digits(value: float) -> str:
    """A number as it is typed, with as many digits as tell it from any other.

    >>> in_digits(2.0), in_digits(0.3), in_digits(1234.5678), in_digits(1234567)
    ('2', '0.3', '1234.5678', '1234567')
    """
    return str(int(value)) if value == int(value) else repr(float(value))


@dataclass(frozen=True, slots=True)
class Speedup:
    """Be this many times faster than the dense network, measured on the device.

    Attributes:
        factor: At least 1.

    Raises:
        InputError: If the factor is below 1 or not finite.
    """

    factor: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise InputError(
                "the speed-up asked for is not one",
                where="speedup",
                expected="a number of at least 1 (2 means half the latency)",
                got=self.factor,
            )

    def allowed_us(self, dense_us: float) -> float:
        """The latency allowed, from that of the dense network, both in microseconds."""
        return dense_us / self.factor


@dataclass(frozen=True, slots=True)
class LatencyUs:
    """Take at most this long, measured on the device.

    Attributes:
        microseconds: Positive.

    Raises:
        InputError: If it is not a positive number.
    """

    microseconds: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.microseconds) and self.microseconds > 0):
            raise InputError(
                "the latency asked for is not one",
                where="latency-us",
                expected="a positive number of microseconds",
                got=self.microseconds,
            )

    def allowed_us(self, dense_us: float) -> float:
        """The latency allowed, whatever the dense network takes."""
        return self.microseconds


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep this fraction of the groups, rounded down.

    Attributes:
        fraction: In (0, 1].

    Raises:
        InputError: If it is outside.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise InputError(
                "the fraction of groups to keep is not one",
                where="keep",
                expected="a number above 0 and at most 1",
                got=self.fraction,
            )

    def count_of(self, total: int) -> int:
        """How many of ``total`` groups that is.

        >>> Keep(0.3).count_of(10)
        3
        """
        # A hair above, so that 0.3 of 10 is 3 in spite of binary fractions.
        return int(self.fraction * total + 1e-9)


@dataclass(frozen=True, slots=True)
class Groups:
    """Keep this many groups.

    Attributes:
        count: At least 1.

    Raises:
        InputError: If it is below 1.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(
                "the number of groups to keep is not one",
                where="groups",
                expected="an integer of at least 1",
                got=self.count,
            )

    def count_of(self, total: int) -> int:
        """How many of ``total`` groups that is: not more than there are."""
        return min(self.count, total)


Target = Speedup | LatencyUs | Keep | Groups


def describe(target: Target) -> dict[str, str | float]:
    """The target as the report carries it: its kind and its value.

    >>> describe(Speedup(2.0))
    {'kind': 'speedup', 'value': 2.0}
    """
    match target:
        case Speedup(value):
            return {"kind": "speedup", "value": value}
        case LatencyUs(value):
            return {"kind": "latency_us", "value": value}
        case Keep(value):
            return {"kind": "keep", "value": value}
        case Groups(value):
            return {"kind": "groups", "value": value}
