"""What lies between sums of rows and what networks take, fitted to networks that were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hwprune.device.correction import Correction, FloatArray
from hwprune.device.kernel_factors import NO_FACTORS, KernelFactors

#: Names of the factors that rows of some kernels may have.
KERNELS = tuple(KernelFactors.model_fields)

#: The price of weights that leave a cache, among the terms that a fit may have besides factor and overhead.
_PRICE = "price"
#: Less than that of the sum of rows is no calibration, but networks that all take the same.
_LEAST_FACTOR = 0.01
#: A number besides factor and overhead is fitted to few networks: it has to leave no more than this part of
#: the error, to take so much away, and to be seen in so many networks.
_WORTH_A_NUMBER, _LEAST_GAIN, _LEAST_SEEN = 0.9, 1e-3, 4
#: A kernel is seen in networks of whose rows it is this part, and its factor lies between these.
_LEAST_PART, _KERNEL_FACTORS = 0.05, (0.5, 4.0)
#: Sizes of caches that are tried, from those of the smallest second cache to those of the largest, in MiB.
_HELD_MIB = np.geomspace(0.125, 8.0, 61)
#: Fits by weighted squares until they are those of the absolute values, and the error that counts as none.
_FITS, _EXACT = 50, 1e-6


class Weights(NamedTuple):
    """The weights of a network, and the bytes that its rows were measured among (0: not noted), in MiB."""

    mib: float
    among_mib: float


class Fitted(NamedTuple):
    """What was fitted: from sums of rows, some of them multiplied before, to latencies of networks."""

    correction: Correction
    kernels: KernelFactors = NO_FACTORS


@dataclass(frozen=True, slots=True)
class _Fit:
    """One fit and the mean of its relative errors."""

    factor: float
    overhead_us: float
    error: float
    kernels: Mapping[str, float]
    held_mib: float = math.inf
    spilled_us: float = 0.0

    @property
    def makes_sense(self) -> bool:
        least, most = _KERNEL_FACTORS
        return (
            self.factor >= _LEAST_FACTOR
            and self.overhead_us >= 0
            and self.spilled_us >= 0
            and all(least <= each <= most for each in self.kernels.values())
        )

    def rounded(self) -> Fitted:
        return Fitted(
            Correction(
                round(self.factor, 4),
                round(self.overhead_us, 2),
                round(self.held_mib, 2),
                round(self.spilled_us, 2),
            ),
            KernelFactors(**{name: round(each, 4) for name, each in self.kernels.items()}),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Networks that were measured.

    Attributes:
        sums: Of rows, shape ``(networks,)`` as all that follow, in microseconds.
        kernels: Name of a factor to what of the sums it would multiply.
        measured: What the networks take, in microseconds.
        weights: Of the networks; none where no price of them is wanted.
    """

    sums: FloatArray
    kernels: Mapping[str, FloatArray]
    measured: FloatArray
    weights: Sequence[Weights]

    def simplest(self) -> _Fit:
        """Factor and overhead alone."""
        fit = self.fit((), None)
        if fit.makes_sense and len(self.measured) > 1:
            return fit
        # The median is not moved by the few smallest networks, where an overhead would matter, nor by noise
        # between networks that are too much alike to tell a factor from an overhead.
        factor = float(np.median(self.measured / self.sums))
        return _Fit(factor, 0.0, float(np.abs(factor * self.sums / self.measured - 1).mean()), {})

    def shows(self, part: FloatArray) -> bool:
        """Whether enough of the networks have so much of their rows that a factor of it can be told."""
        return int(np.count_nonzero(part > _LEAST_PART * self.sums)) >= _LEAST_SEEN

    def best(self, terms: Set[str]) -> _Fit | None:
        """The best fit with factors of some kernels and, where it is among the terms, a price.

        Args:
            terms: Names of kernels, and :data:`_PRICE`.
        """
        kernels = [name for name in self.kernels if name in terms]
        fits = [self.fit(kernels, size) for size in (self._sizes() if _PRICE in terms else [None])]
        return min((fit for fit in fits if fit.makes_sense), key=lambda fit: fit.error, default=None)

    def fit(self, kernels: Sequence[str], held_mib: float | None) -> _Fit:
        """The fit with factors for some kernels and, where a cache holds so much, a price of the rest."""
        parts = [self.kernels[name] for name in kernels]
        spilled = [] if held_mib is None else [self._spilled(held_mib)]
        terms = [self.sums - sum(parts), *parts, *spilled]
        found, error = _least_absolute([*terms, np.ones_like(self.sums)], self.measured)
        if found[-1] < 0 and len(terms) > 1:
            found, error = _least_absolute(terms, self.measured)
            found = (*found, 0.0)
        factor, *multiplied = found[: 1 + len(kernels)]
        named = dict(zip(kernels, (each / factor for each in multiplied), strict=True))
        if held_mib is None:
            return _Fit(factor, found[-1], error, named)
        return _Fit(factor, found[-1], error, named, float(held_mib), found[-2])

    def _sizes(self) -> list[float | None]:
        """Sizes of caches that enough of the networks do not fit into."""
        return [
            float(size) for size in _HELD_MIB if np.count_nonzero(self._spilled(float(size))) >= _LEAST_SEEN
        ]

    def _spilled(self, held_mib: float) -> FloatArray:
        """MiB that leave a cache of such a size."""
        return np.array(
            [max(each.mib - held_mib, 0.0) if each.among_mib <= held_mib else 0.0 for each in self.weights]
        )


def fit_calibration(
    sums: Sequence[float],
    measured: Sequence[float],
    weights: Sequence[Weights] = (),
    kernels: Mapping[str, Sequence[float]] | None = None,
) -> Fitted:
    """The factor and the overhead, in microseconds and not negative, with the least relative errors.

    ``min_{f, o} sum_i |f s_i + o - m_i| / m_i``: absolute values, which a few networks that were disturbed
    do not move. Found by iteratively reweighted least squares. A price for weights that a cache does not
    hold, for many sizes of it, and factors of some kernels join one after the other, each as the one that
    takes most of the error away, until none takes a good part of it.

    Args:
        sums: Of rows, in microseconds.
        measured: What the networks take.
        weights: Of the networks; without them there is no price.
        kernels: Names of :data:`KERNELS` to what of the sums is rows of theirs.

    >>> fit_calibration([100.0, 200.0], [115.0, 225.0]).correction.overhead_us
    5.0
    >>> fit_calibration([100.0, 200.0, 300.0, 400.0], [115.0, 225.0, 335.0, 900.0]).correction.factor
    1.1
    >>> fit_calibration([100.0, 200.0], [95.0, 205.0]).correction.factor
    0.9875
    >>> fit_calibration([10.0, 10.4], [12.0, 11.0]).correction.factor
    1.1288
    """
    parts = {name: np.array(part) for name, part in (kernels or {}).items()}
    sample = _Sample(np.array(sums), parts, np.array(measured), weights)
    best, terms = sample.simplest(), frozenset[str]()
    offered = {_PRICE} if weights else set[str]()
    offered |= {name for name, part in parts.items() if sample.shows(part)}
    while fits := [(fit, {*terms, term}) for term in offered - terms if (fit := sample.best({*terms, term}))]:
        fit, joined = min(fits, key=lambda each: each[0].error)
        if fit.error >= min(best.error * _WORTH_A_NUMBER, best.error - _LEAST_GAIN):
            break
        best, terms = fit, frozenset(joined)
    return best.rounded()


def _least_absolute(terms: Sequence[FloatArray], true: FloatArray) -> tuple[tuple[float, ...], float]:
    """The factors of terms that come closest to true values, and the mean of the relative errors."""
    design = np.stack(terms, axis=1) / true[:, None]
    weights = np.ones_like(true)
    for _ in range(_FITS):
        found = np.linalg.lstsq(design * weights[:, None], weights, rcond=None)[0]
        weights = 1 / np.sqrt(np.maximum(np.abs(design @ found - 1), _EXACT))
    return tuple(map(float, found)), float(np.abs(design @ found - 1).mean())
