"""How far a profile's predictions are from what networks take on the machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwprune.device.predict import predict_operators, table_of
from hwprune.device.profile import DeviceProfile
from hwprune.graph.trace import trace_operators
from hwprune.runtime.export import export
from hwprune.runtime.timing import Timing, measure
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
    """

    name: str
    predicted_us: float
    measured_us: float
    noise: float
    widths: str = ALIGNED

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted_us / self.measured_us - 1


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
    errors, of_medians = list[NetworkError](), table_of(profile).of_medians

    def latency_us(timing: Timing) -> float:
        return timing.median_us if of_medians else timing.undisturbed_us

    def tell(path: Path) -> None:
        (name, predicted_us), timing = predicted[path], seen[path]
        noise = timing.p90_us / timing.p10_us - 1
        errors.append(NetworkError(name, predicted_us, latency_us(timing), noise, widths))
        done(errors[-1])

    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        seen: dict[Path, Timing] = {}
        predicted: dict[Path, tuple[str, float]] = {}
        for number, (name, network) in enumerate(networks):
            operators = trace_operators(network.model, network.example)
            path = Path(folder) / f"{number}.onnx"
            predicted[path] = name, predict_operators(operators, profile).total_us
            export(network.model, path, network.example, batch=profile.runtime.batch)
            seen[path] = measure(path, profile)
            if passes == 1:
                path.unlink(missing_ok=True)
                tell(path)
        for number in range(1, passes):
            for path, timing in seen.items():
                seen[path] = min(timing, measure(path, profile), key=latency_us)
                if number == passes - 1:
                    tell(path)
    return tuple(errors)


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
