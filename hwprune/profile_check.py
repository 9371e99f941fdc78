"""How far a profile's predictions are from what networks take on the machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from hwprune.device.predict import predict_operators, table_of
from hwprune.device.profile import DeviceProfile
from hwprune.graph.trace import trace_operators
from hwprune.runtime.export import export
from hwprune.runtime.steady import Watch, reference_kernel
from hwprune.runtime.timing import measure
from hwprune.sampled_networks import Network

#: Networks at widths that the profile's rules allow, and at any.
ALIGNED, UNALIGNED = "aligned", "unaligned"


@dataclass(frozen=True, slots=True)
class NetworkError:
    """Predicted against measured latency of one network.

    Attributes:
        name: The network.
        predicted_us: From the table, the calibration and the overhead of the profile.
        measured_us: On this machine: what the rows of the table count, undisturbed or the median.
        noise: ``p90 / p10 - 1`` of the measurement.
        widths: ``aligned`` where the network has widths that the profile's rules allow, else ``unaligned``.
        pace: What ``measured_us`` was multiplied by, because the processor's clock was not that of the table.
    """

    name: str
    predicted_us: float
    measured_us: float
    noise: float
    widths: str = ALIGNED
    pace: float = 1.0

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted_us / self.measured_us - 1

    def unscaled(self) -> NetworkError:
        """The same as it was measured, at whatever clock.

        >>> NetworkError("net", 10.0, 11.0, 0.0, pace=1.1).unscaled().measured_us
        10.0
        """
        return replace(self, measured_us=self.measured_us / self.pace, pace=1.0)


def compare_networks(
    profile: DeviceProfile,
    networks: Iterable[tuple[str, Network]],
    done: Callable[[NetworkError], None],
    widths: str = ALIGNED,
    *,
    passes: int = 1,
) -> tuple[NetworkError, ...]:
    """Predicts and measures networks one after the other.

    Args:
        profile: A profile with a table, of this machine.
        networks: Names and networks.
        done: Called after each of them.
        widths: What kind of widths they have, for the record.
        passes: How often all of them are measured; the least disturbed measurement of each counts.

    Raises:
        MissingRowError: If the table lacks an operator.
    """
    errors = list[NetworkError]()
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder, _at_pace_of(profile) as timed:
        seen: dict[Path, NetworkError] = {}
        for number, (name, network) in enumerate(networks):
            operators = trace_operators(network.model, network.example)
            path = Path(folder) / f"{number}.onnx"
            predicted_us = predict_operators(operators, profile).total_us
            export(network.model, path, network.example, batch=profile.runtime.batch)
            latency_us, noise, pace = timed(path)
            seen[path] = NetworkError(name, predicted_us, latency_us, noise, widths, pace)
            if passes == 1:
                path.unlink(missing_ok=True)
                errors.append(seen[path])
                done(errors[-1])
        for number in range(1, passes):
            for path, before in seen.items():
                latency_us, noise, pace = timed(path)
                again = replace(before, measured_us=latency_us, noise=noise, pace=pace)
                seen[path] = min(before, again, key=lambda error: error.measured_us)
                if number == passes - 1:
                    errors.append(seen[path])
                    done(errors[-1])
    return tuple(errors)


@contextmanager
def _at_pace_of(profile: DeviceProfile) -> Iterator[Callable[[Path], _Timed]]:
    """Yields a function that times a file at the pace the machine had when the table was measured.

    What disturbs the machine does not stop it: how far predictions are off then is what is asked.
    """
    spec, reference_us = profile.runtime, profile.provenance.reference_us
    of_medians = table_of(profile).of_medians

    def once(path: Path) -> _Timed:
        timing = measure(path, profile)
        noise = timing.p90_us / timing.p10_us - 1
        return _Timed(timing.median_us if of_medians else timing.undisturbed_us, noise, 1.0)

    if of_medians or reference_us is None:
        yield once
        return
    with reference_kernel(spec) as look_us:
        watch = Watch(look_us, notify=lambda line: None, allow_busy=True, base_us=reference_us)
        watch.begin()
        yield lambda path: watch.measure(partial(once, path), _Timed.at_pace)


class _Timed(NamedTuple):
    """What :class:`NetworkError` holds of a measurement."""

    latency_us: float
    noise: float
    pace: float

    def at_pace(self, factor: float) -> Self:
        """The latency that it would have been at another clock."""
        return self._replace(latency_us=factor * self.latency_us, pace=factor)


def summarise(errors: Sequence[NetworkError]) -> dict[str, Any]:
    """Statistics of the absolute relative errors.

    >>> summarise([NetworkError("a", 101.0, 100.0, 0.0), NetworkError("b", 94.0, 100.0, 0.0)])["median"]
    0.035
    """
    sizes = np.abs([error.error for error in errors])
    return {
        "networks": len(errors),
        "median": round(float(np.median(sizes)), 4),
        "p95": round(float(np.percentile(sizes, 95)), 4),
        "p99": round(float(np.percentile(sizes, 99)), 4),
        "worst": round(float(sizes.max()), 4),
        "bias": round(float(np.median([error.error for error in errors])), 4),
        "within_5_percent": round(float((sizes <= 0.05).mean()), 4),
        "within_10_percent": round(float((sizes <= 0.10).mean()), 4),
    }


def by_widths(errors: Sequence[NetworkError]) -> dict[str, dict[str, Any]]:
    """Statistics of the networks of each kind of widths that there are, and of all of them."""
    kinds = {kind: [error for error in errors if error.widths == kind] for kind in (ALIGNED, UNALIGNED)}
    return {kind: summarise(chosen) for kind, chosen in {**kinds, "all": list(errors)}.items() if chosen}


def markdown_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """Statistics per kind of widths as a table in Markdown.

    >>> print(markdown_table({"all": summarise([NetworkError("a", 101.0, 100.0, 0.0)])}))
    | widths | networks | median error | 95 % within | 99 % within | worst | median signed |
    |---|---|---|---|---|---|---|
    | all | 1 | 1.0 % | 1.0 % | 1.0 % | 1.0 % | +1.0 % |
    <BLANKLINE>
    """
    lines = [
        "| widths | networks | median error | 95 % within | 99 % within | worst | median signed |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, summary in summaries.items():
        sizes = " | ".join(f"{100 * summary[key]:.1f} %" for key in ("median", "p95", "p99", "worst"))
        lines.append(f"| {kind} | {summary['networks']} | {sizes} | {100 * summary['bias']:+.1f} % |")
    return "\n".join(lines) + "\n"


def markdown_page(title: str, about: str, errors: Sequence[NetworkError]) -> str:
    """The errors of one profile as a piece of documentation in Markdown.

    Args:
        title: Its heading.
        about: One paragraph: what was measured when on what, and by which command.
        errors: One per network.
    """
    rows = [
        f"| {error.name} | {error.predicted_us:.1f} | {error.measured_us:.1f} | {100 * error.error:+.1f} % |"
        for error in errors
    ]
    head = ["| network (image) | predicted, us | measured, us | error |", "|---|---|---|---|"]
    return "\n".join([f"## {title}", "", about, "", markdown_table(by_widths(errors)), *head, *rows, ""])
