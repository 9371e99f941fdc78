"""Fits the prediction to measured versions of the network at hand, before it is trained.

A sum of single operators misses what a runtime does between them, and which caches the weights of the whole
network stay in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from hwprune.device.correction import Correction
from hwprune.groups.costs import FloatArray, Widths
from hwprune.kept_measurements import Loop, measured_once
from hwprune.operators import Operator

#: Sums of rows that differ by a smaller part of the largest tell no factor from an overhead.
LEAST_APART = 0.05
#: The least and the most that a sum of rows may have to be multiplied by.
FACTORS = (0.5, 2.0)
#: The part of the fastest measured network that timing its operators one by one may have added to them.
MOST_TAKEN_OFF = 0.25
#: Sizes of a cache that are tried for what weights it holds.
HELD_TRIED = 24


class Predictor(Protocol):
    """Predicts the latency of versions of one network."""

    @property
    def operators(self) -> Sequence[Operator]:
        """Fused operators of the dense network."""
        ...

    @property
    def correction(self) -> Correction | None:
        """From sums of rows to latencies; ``None`` for the profile's."""
        ...

    def latency_us(self, widths: Widths, /) -> FloatArray:
        """Predicted latency of networks, widths ``(..., axes)`` to microseconds ``(...)``."""
        ...

    def weights_mib(self, widths: Widths, /) -> FloatArray:
        """What all weights of networks take: widths ``(..., axes)`` to MiB at single precision ``(...)``."""
        ...

    def corrected(self, correction: Correction) -> Self:
        """The same prediction with another correction."""
        ...


def calibrate(
    loop: Loop, predictor: Predictor, sample: Sequence[Widths], further: Sequence[Widths] = ()
) -> Correction:
    """Fits the prediction's correction to measured networks of the model at hand.

    Where no factor and overhead describe them, a cache may hold the weights of some and not of others: then
    more networks are measured, and what spills gets a price. The measurements are kept, so that equal runs
    see equal predictions.

    Args:
        loop: Measures.
        predictor: Any correction of it is ignored.
        sample: Widths to measure, two or more, the dense ones first.
        further: Widths to measure besides where those are not enough; at least two for a price of what
            spills.
    """
    sampled = _sampled(loop, predictor, sample)
    if float(np.ptp(sampled.sums)) < LEAST_APART * float(sampled.sums.max()):
        return Correction(float(sampled.measured.mean() / sampled.sums.mean()))
    if fitted := _fitted(sampled):
        return fitted[0]
    if further and float(np.ptp(sampled.weights_mib)) > 0:
        wider = _sampled(loop, predictor, [*sample, *further])
        sizes = np.linspace(wider.weights_mib.min(), wider.weights_mib.max(), HELD_TRIED, endpoint=False)
        found = [fit for held_mib in sizes if (fit := _fitted(wider, float(held_mib)))]
        if found:
            return min(found, key=lambda fit: fit[1])[0]
    # Too little in common, or narrow networks would take no time at all: a plain ratio is the safer one.
    return Correction(float(np.mean(sampled.measured / sampled.sums)))


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Measured networks, the dense one first, shape ``(networks,)`` each.

    Attributes:
        sums: Of their rows, in microseconds.
        weights_mib: What their weights take.
        measured: What they take, undisturbed, in microseconds.
    """

    sums: FloatArray
    weights_mib: FloatArray
    measured: FloatArray


def _sampled(loop: Loop, predictor: Predictor, sample: Sequence[Widths]) -> _Sample:
    raw = predictor.corrected(Correction())
    sums = np.array([float(raw.latency_us(widths)) for widths in sample])
    weights = np.array([float(raw.weights_mib(widths)) for widths in sample])
    names = ["dense", *(f"narrower{i}" for i in range(1, len(sample)))]
    networks = {name: loop.kept(widths) for name, widths in zip(names, sample, strict=True)}
    timings = measured_once(loop, raw.operators, networks).timings
    return _Sample(sums, weights, np.array([timings[name].undisturbed_us for name in names]))


def _fitted(sample: _Sample, held_mib: float | None = None) -> tuple[Correction, float] | None:
    """The correction with the least squares of relative errors, and these; ``None`` where it makes no sense.

    Args:
        sample: Fitted to.
        held_mib: What a cache holds; a price of what it does not is fitted, too.
    """
    terms = [sample.sums, np.ones_like(sample.sums)]
    if held_mib is not None:
        terms.append(np.maximum(sample.weights_mib - held_mib, 0.0))
    # Relative errors count, not absolute ones: weigh every network by its latency.
    design = np.stack(terms, axis=1) / sample.measured[:, None]
    found = np.linalg.lstsq(design, np.ones_like(sample.measured), rcond=None)[0]
    factor, overhead, *spilled = map(float, found)
    if not FACTORS[0] <= factor <= FACTORS[1] or overhead < -MOST_TAKEN_OFF * float(sample.measured.min()):
        return None
    squares = float(((design @ found - 1) ** 2).sum())
    if held_mib is None:
        return Correction(factor, overhead), squares
    return (Correction(factor, overhead, held_mib, spilled[0]), squares) if spilled[0] > 0 else None
