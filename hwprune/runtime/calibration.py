"""Calibration of a profile: networks are measured, and what lies between the sums of their rows and that."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from hwprune.device.kernel_factors import NO_FACTORS, KernelFactors, kernel_of
from hwprune.device.predict import Prediction, predict_operators, table_of
from hwprune.device.profile import PROFILE_FILE, DeviceProfile, LatencySpec
from hwprune.device.profile_text import to_toml
from hwprune.device.working_set import weight_bytes
from hwprune.errors import ProfileError
from hwprune.files import write_text
from hwprune.graph.trace import trace_operators
from hwprune.operators import Operator
from hwprune.runtime.calibration_fit import KERNELS, Fitted, Weights, fit_calibration
from hwprune.runtime.partial import PartialBuild
from hwprune.runtime.steady import Watch, reference_kernel
from hwprune.runtime.workbench import Workbench

Networks = Mapping[str, tuple[nn.Module, Tensor]]

#: What the networks of a calibration took, beside the profile.
CALIBRATION_FILE = "calibration.csv"

_MIB = 1 << 20


def recalibrate(
    profile: DeviceProfile,
    networks: Networks,
    command: str,
    notify: Callable[[str], None],
    *,
    passes: int = 1,
    allow_busy: bool = False,
) -> DeviceProfile:
    """Fits factor and overhead of a profile to networks measured on this machine now; its rows stay.

    Args:
        profile: With a table of this machine; its file is replaced.
        networks: Name to a network that the table prices and an example input.
        command: How it is done, for the record.
        notify: Called with one line for everything the user should know.
        passes: How often all networks are measured; the least disturbed measurement of each counts.
        allow_busy: Measure although the machine is busy; the profile says so.

    Returns:
        The profile as it was written.

    Raises:
        ProfileError: If the profile has no table or one of medians, or the machine is busy; nothing is
            written then.
        MissingRowError: If the table lacks an operator.
        RuntimeUnavailableError: If the runtime is missing.
    """
    if table_of(profile).of_medians:
        raise ProfileError(
            "the rows are medians, as older versions counted them; networks are timed undisturbed now",
            where=profile.folder,
            expected="rows with the column undisturbed_us",
            hint="measure them again with: hwprune profile build --anew",
        )
    assert profile.folder is not None  # what has a file with a table was read from one
    with reference_kernel(profile.runtime) as look_us, tempfile.TemporaryDirectory(prefix="hwprune-") as kept:
        watch = Watch(look_us, notify, allow_busy, base_us=profile.provenance.reference_us)
        watch.begin(profile.provenance.reference_us)
        bench = Workbench(PartialBuild(Path(kept) / "networks.json", {}), watch)
        notify(f"fitting the calibration to {len(networks)} networks")
        fitted, measured = calibrate(profile, networks, bench, passes)
        watch.finish("with the same command")
    provenance = profile.provenance.model_copy(
        update={
            "command": f"{profile.provenance.command} && {command}",
            "busy": profile.provenance.busy or watch.busy,
        }
    )
    latency = profile.latency.model_copy(update=as_spec(fitted))
    written = profile.model_copy(update={"latency": latency, "provenance": provenance})
    write_calibration(profile.folder, measured)
    write_text(profile.folder / PROFILE_FILE, to_toml(written))
    return written


def as_spec(fitted: Fitted) -> dict[str, float | KernelFactors | None]:
    """What was fitted as the ``latency`` of a profile has it."""
    correction, spilling = fitted.correction, fitted.correction.spilled_us > 0
    return {
        "calibration": correction.factor,
        "overhead_us": correction.overhead_us,
        "per_operator_us": 0.0,
        "kernels": fitted.kernels if fitted.kernels != NO_FACTORS else None,
        "held_mib": correction.held_mib if spilling else None,
        "spilled_us": correction.spilled_us if spilling else None,
    }


class Measured(NamedTuple):
    """A network of a calibration, in the order of the columns of :data:`CALIBRATION_FILE`.

    Attributes:
        network: Its name.
        sum_us: Of its rows.
        measured_us: What it takes.
        predicted_us: By what was fitted.
        weights_mib: Its weights at single precision.
        among_mib: What its rows were measured among; 0 where that was not noted.
        pointwise_us: What of the sum is rows of kernels as :class:`KernelFactors` tells them apart.
        depthwise_us: Likewise.
        linear_us: Likewise.
    """

    network: str
    sum_us: float
    measured_us: float
    predicted_us: float
    weights_mib: float
    among_mib: float
    pointwise_us: float
    depthwise_us: float
    linear_us: float


def calibrate(
    profile: DeviceProfile, networks: Networks, bench: Workbench, passes: int
) -> tuple[Fitted, list[Measured]]:
    """What fits whole networks best, see :func:`fit_calibration`, and what they took.

    Args:
        profile: Whose rows are added up.
        networks: Name to a network and an example input.
        bench: Measures them.
        passes: How often; the least disturbed measurement of each counts.
    """
    raw = profile.model_copy(update={"latency": LatencySpec(table=profile.latency.table)})
    traced = {name: trace_operators(*network) for name, network in networks.items()}
    rows = [predict_operators(operators, raw) for operators in traced.values()]
    sums = [each.total_us for each in rows]
    kernels = {
        name: [_sum_of(name, operators, each) for operators, each in zip(traced.values(), rows, strict=True)]
        for name in KERNELS
    }
    for number in range(passes):
        if number:
            bench.networks_again()
        took = [
            bench.network_us(model, example, traced[name], profile)
            for name, (model, example) in networks.items()
        ]
    weights = [
        Weights(
            sum(map(weight_bytes, operators)) / _MIB,
            table_of(raw.for_network(operators, pruned=False)).bytes_among(operators) / _MIB,
        )
        for operators in traced.values()
    ]
    # Kernels that skip weights keep them in a form of their own, which has no such price.
    fitted = fit_calibration(sums, took, () if profile.prices_zeros else weights, kernels)
    by_fit = profile.model_copy(update={"latency": profile.latency.model_copy(update=as_spec(fitted))})
    predicted = [predict_operators(operators, by_fit).total_us for operators in traced.values()]
    parts = (kernels["pointwise"], kernels["depthwise"], kernels["linear"])
    columns = zip(networks, sums, took, predicted, *zip(*weights, strict=True), *parts, strict=True)
    return fitted, list(starmap(Measured, columns))


def _sum_of(kernel: str, operators: Sequence[Operator], rows: Prediction) -> float:
    """What of the sum of a network's rows is those of one kernel, in microseconds."""
    return sum(
        layer.latency_us
        for operator, layer in zip(operators, rows.layers, strict=True)
        if kernel_of(operator) == kernel
    )


def write_calibration(folder: Path, measured: Sequence[Measured]) -> None:
    """Writes what the networks of a calibration took beside the profile, as CSV.

    Args:
        folder: The profile's.
        measured: A row each.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Measured._fields)
    for name, *numbers in measured:
        writer.writerow([name, *(f"{number:.2f}" for number in numbers)])
    write_text(folder / CALIBRATION_FILE, text.getvalue())
