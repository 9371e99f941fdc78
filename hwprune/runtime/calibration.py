"""Factor and overhead of a profile: what lies between the sum of a network's rows and what it takes."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from hwprune.device.correction import Correction, FloatArray
from hwprune.device.predict import predict_operators, table_of
from hwprune.device.profile import PROFILE_FILE, DeviceProfile, LatencySpec
from hwprune.device.profile_text import to_toml
from hwprune.device.working_set import weight_bytes
from hwprune.errors import ProfileError
from hwprune.files import write_text
from hwprune.graph.trace import trace_operators
from hwprune.runtime.partial import PartialBuild
from hwprune.runtime.steady import Watch, reference_kernel
from hwprune.runtime.workbench import Workbench

Networks = Mapping[str, tuple[nn.Module, Tensor]]

#: What the networks of a calibration took, beside the profile.
CALIBRATION_FILE = "calibration.csv"

#: Less than that of the sum of rows is no calibration, but networks that all take the same.
_LEAST_FACTOR = 0.01
#: A price for weights that leave a cache has to leave no more than this part of the error, to take so much
#: away, and to be seen in so many networks: it is a third number fitted to few of them.
_WORTH_A_PRICE, _LEAST_GAIN, _LEAST_SPILLING = 0.9, 1e-3, 4
#: Sizes of caches that are tried, from those of the smallest second cache to those of the largest, in MiB.
_HELD_MIB = np.geomspace(0.125, 8.0, 61)
_MIB = 1 << 20
#: Fits by weighted squares until they are those of the absolute values, and the error that counts as none.
_FITS, _EXACT = 50, 1e-6


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
    latency = profile.latency.model_copy(update={**as_spec(fitted), "per_operator_us": 0.0})
    written = profile.model_copy(update={"latency": latency, "provenance": provenance})
    write_calibration(profile.folder, measured)
    write_text(profile.folder / PROFILE_FILE, to_toml(written))
    return written


def as_spec(fitted: Correction) -> dict[str, float | None]:
    """A correction as a profile has it."""
    spilling = fitted.spilled_us > 0
    return {
        "calibration": fitted.factor,
        "overhead_us": fitted.overhead_us,
        "held_mib": fitted.held_mib if spilling else None,
        "spilled_us": fitted.spilled_us if spilling else None,
    }


class Weights(NamedTuple):
    """The weights of a network, and the bytes that its rows were measured among (0: not noted), in MiB."""

    mib: float
    among_mib: float


class Measured(NamedTuple):
    """A network of a calibration, in the order of the columns of :data:`CALIBRATION_FILE`.

    Attributes:
        network: Its name.
        sum_us: Of its rows.
        measured_us: What it takes.
        predicted_us: By what was fitted.
        weights_mib: Its weights at single precision.
        among_mib: What its rows were measured among; 0 where that was not noted.
    """

    network: str
    sum_us: float
    measured_us: float
    predicted_us: float
    weights_mib: float
    among_mib: float


def calibrate(
    profile: DeviceProfile, networks: Networks, bench: Workbench, passes: int
) -> tuple[Correction, list[Measured]]:
    """The correction that fits whole networks best, see :func:`fit_calibration`, and what they took.

    Args:
        profile: Whose rows are added up.
        networks: Name to a network and an example input.
        bench: Measures them.
        passes: How often; the least disturbed measurement of each counts.
    """
    raw = profile.model_copy(update={"latency": LatencySpec(table=profile.latency.table)})
    traced = {name: trace_operators(*network) for name, network in networks.items()}
    sums = [predict_operators(operators, raw).total_us for operators in traced.values()]
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
    fitted = fit_calibration(sums, took, () if profile.prices_zeros else weights)
    by_fit = profile.model_copy(
        update={"latency": profile.latency.model_copy(update=as_spec(fitted) | {"per_operator_us": 0.0})}
    )
    predicted = [predict_operators(operators, by_fit).total_us for operators in traced.values()]
    columns = zip(networks, sums, took, predicted, *zip(*weights, strict=True), strict=True)
    return fitted, list(starmap(Measured, columns))


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


def fit_calibration(
    predicted: Sequence[float], measured: Sequence[float], weights: Sequence[Weights] = ()
) -> Correction:
    """The factor and the overhead, in microseconds and not negative, with the least relative errors.

    ``min_{f, o} sum_i |f p_i + o - m_i| / m_i``: absolute values, which a few networks that were disturbed
    do not move. Found by iteratively reweighted least squares. Where weights are given, a price for those
    that a cache does not hold is fitted, too, for many sizes of it, and kept where it takes a good part of
    the error away.

    Args:
        predicted: Sums of rows, in microseconds.
        measured: What the networks take.
        weights: Of the networks.

    >>> fit_calibration([100.0, 200.0], [115.0, 225.0]).overhead_us
    5.0
    >>> fit_calibration([100.0, 200.0, 300.0, 400.0], [115.0, 225.0, 335.0, 900.0]).factor
    1.1
    >>> fit_calibration([100.0, 200.0], [95.0, 205.0]).factor
    0.9875
    >>> fit_calibration([10.0, 10.4], [12.0, 11.0]).factor
    1.1288
    """
    sums, true = np.array(predicted), np.array(measured)
    (factor, overhead), error = _least_absolute([sums, np.ones_like(sums)], true)
    if overhead < 0 or factor < _LEAST_FACTOR or len(true) < 2:
        # The median is not moved by the few smallest networks, where an overhead would matter, nor by noise
        # between networks that are too much alike to tell a factor from an overhead.
        factor, overhead = float(np.median(true / sums)), 0.0
        error = float(np.abs(factor * sums / true - 1).mean())
    best = Correction(round(factor, 4), round(overhead, 2))
    most = min(error * _WORTH_A_PRICE, error - _LEAST_GAIN)
    for held_mib in _HELD_MIB if weights else ():
        spilled = np.array(
            [max(each.mib - held_mib, 0.0) if each.among_mib <= held_mib else 0.0 for each in weights]
        )
        if np.count_nonzero(spilled) < _LEAST_SPILLING:
            continue
        (factor, overhead, price), error = _least_absolute([sums, np.ones_like(sums), spilled], true)
        if error < most and overhead >= 0 and factor >= _LEAST_FACTOR and price > 0:
            rounded = round(factor, 4), round(overhead, 2), round(float(held_mib), 2), round(price, 2)
            best, most = Correction(*rounded), error
    return best


def _least_absolute(terms: Sequence[FloatArray], true: FloatArray) -> tuple[tuple[float, ...], float]:
    """The factors of terms that come closest to true values, and the mean of the relative errors."""
    design = np.stack(terms, axis=1) / true[:, None]
    weights = np.ones_like(true)
    for _ in range(_FITS):
        found = np.linalg.lstsq(design * weights[:, None], weights, rcond=None)[0]
        weights = 1 / np.sqrt(np.maximum(np.abs(design @ found - 1), _EXACT))
    return tuple(map(float, found)), float(np.abs(design @ found - 1).mean())
