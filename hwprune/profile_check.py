"""How far a profile's predictions are from what networks take on the machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwprune.device.predict import predict_operators
from hwprune.device.profile import DeviceProfile
from hwprune.graph.trace import trace_operators
from hwprune.runtime.export import export
from hwprune.runtime.timing import measure
from hwprune.sampled_networks import Network


@dataclass(frozen=True, slots=True)
class NetworkError:
    """Predicted against measured latency of one network.

    Attributes:
        name: The network.
        predicted_us: From the table, the calibration and the overhead of the profile.
        measured_us: Median on this machine.
        noise: ``p90 / p10 - 1`` of the measurement.
    """

    name: str
    predicted_us: float
    measured_us: float
    noise: float

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted_us / self.measured_us - 1


def compare_networks(
    profile: DeviceProfile,
    networks: Iterable[tuple[str, Network]],
    done: Callable[[NetworkError], None],
) -> tuple[NetworkError, ...]:
    """Predicts and measures networks one after the other.

    Args:
        profile: A profile with a table, of this machine.
        networks: Names and networks.
        done: Called after each of them.

    Raises:
        MissingRowError: If the table lacks an operator.
    """
    errors = []
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        for name, network in networks:
            predicted = predict_operators(trace_operators(network.model, network.example), profile)
            path = Path(folder) / "network.onnx"
            export(network.model, path, network.example)
            timing = measure(path, profile)
            errors.append(
                NetworkError(name, predicted.total_us, timing.median_us, timing.p90_us / timing.p10_us - 1)
            )
            done(errors[-1])
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
        "worst": round(float(sizes.max()), 4),
        "bias": round(float(np.median([error.error for error in errors])), 4),
        "within_5_percent": round(float((sizes <= 0.05).mean()), 4),
        "within_10_percent": round(float((sizes <= 0.10).mean()), 4),
    }
