"""Builds a device profile on this machine: steps, rows, and a calibration on whole networks."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from hwprune.device.predict import predict_operators
from hwprune.device.profile import PROFILE_FILE, DeviceProfile, LatencySpec, Provenance
from hwprune.device.table import LatencyTable
from hwprune.errors import ProfileError
from hwprune.files import write_text
from hwprune.graph.trace import trace_operators
from hwprune.operators import Operator
from hwprune.runtime.environment import environment, versions
from hwprune.runtime.export import export
from hwprune.runtime.local import for_this_machine
from hwprune.runtime.rows import measure_rows, working_set
from hwprune.runtime.sampling import Progress, measure_operators
from hwprune.runtime.staircase import PROBES
from hwprune.runtime.timing import measure

TABLE_FILE = "latency.csv"
#: A machine whose reference kernel differs by more than this between start, middle and end is busy.
STEADY = 0.05
_REFERENCE = Operator("conv", 64, 64, 28, 28, 3, 3, padding=1)


Networks = Mapping[str, tuple[nn.Module, Tensor]]


def build_profile(
    template: DeviceProfile,
    networks: Networks,
    samples: Callable[[DeviceProfile], Networks],
    out: Path,
    *,
    command: str,
    notify: Callable[[str], None],
    progress: Progress | None = None,
) -> DeviceProfile:
    """Measures this machine and writes a profile that covers networks and everything narrower.

    Args:
        template: Runtime, precision, threads, batch and rules; its steps are found anew.
        networks: Name to a network and an example input.
        samples: From the profile with its steps to networks, no wider, that the calibration is fitted to.
        out: The profile's folder; its last part is the profile's name.
        command: How it was built, for the record.
        notify: Called with one line for every stage.
        progress: Called with the number of rows done and known to be needed so far.

    Returns:
        The profile.

    Raises:
        ProfileError: If the machine is busy: then nothing is written.
    """
    traced = {name: trace_operators(*network) for name, network in networks.items()}
    operators = [operator for network in traced.values() for operator in network]
    reference = [_reference_us(template)]
    notify("looking for the steps of the latency staircase")
    local = for_this_machine(template, [*operators, *PROBES.values()], notify, cached=False)
    table = _measure_table(local, traced, notify, progress)
    local = local.model_copy(update={"rows": table, "name": out.name})
    reference.append(_reference_us(template))
    fitted_to = samples(local)
    notify(f"{len(table)} rows; fitting the calibration to {len(fitted_to)} networks")
    factor, overhead = _calibrate(local, fitted_to)
    reference.append(_reference_us(template))
    _check_steady(reference)
    finished = _with_provenance(local, table, factor, overhead, command)
    out.mkdir(parents=True, exist_ok=True)
    noise = ", ".join(f"{value:.1f}" for value in reference)
    table.write(
        out / TABLE_FILE,
        {**environment(), "command": command, "reference kernel at start, middle and end (us)": noise},
    )
    write_text(out / PROFILE_FILE, to_toml(finished))
    return finished


def _measure_table(
    profile: DeviceProfile,
    networks: Mapping[str, Sequence[Operator]],
    notify: Callable[[str], None],
    progress: Progress | None,
) -> LatencyTable:
    """Rows for networks and everything narrower, one network after the other."""
    table = LatencyTable((), profile.runtime.batch, profile.runtime.precision)
    for name, operators in networks.items():
        while missing := [op for op in operators if not table.covers_narrower(op, profile.steps_for(op))]:
            notify(f"{name}: measuring rows for {len(missing)} of {len(operators)} operators")
            fresh = measure_rows(missing, profile, progress=progress, working_set=working_set(operators))
            if not {row.operator for row in fresh} - table.operators:
                break  # nothing new to learn; a prediction will name what is missing
            table = table.merged(fresh)
    return table


def _check_steady(reference: Sequence[float]) -> None:
    """Raises where the reference kernel did not take the same time throughout."""
    if max(reference) > (1 + STEADY) * min(reference):
        raise ProfileError(
            "the machine is busy: a reference kernel did not take the same time throughout",
            expected=f"within {STEADY:.0%}",
            got=", ".join(f"{value:.1f} us" for value in reference),
            hint="stop what else is running and build again; nothing was written",
        )


def _with_provenance(
    profile: DeviceProfile, table: LatencyTable, factor: float, overhead: float, command: str
) -> DeviceProfile:
    facts = environment()
    noise = statistics.median(row.p90_us / row.p10_us - 1 for row in table.rows)
    return profile.model_copy(
        update={
            "latency": LatencySpec(table=TABLE_FILE, calibration=factor, overhead_us=overhead),
            "provenance": Provenance(
                source="measured",
                command=command,
                date=str(facts["date"]),
                host=str(facts["cpu"]),
                versions=versions(),
                runs=int(statistics.median(row.runs for row in table.rows)),
                noise=round(noise, 4),
            ),
        }
    )


def _reference_us(template: DeviceProfile) -> float:
    (row,) = measure_operators([_REFERENCE], template.runtime)
    return row.median_us


def _calibrate(profile: DeviceProfile, networks: Networks) -> tuple[float, float]:
    """Factor and overhead that fit whole networks best, in relative terms."""
    raw = profile.model_copy(update={"latency": LatencySpec()})
    predicted, measured = [], []
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        for model, example in networks.values():
            path = Path(folder) / "network.onnx"
            export(model, path, example)
            predicted.append(predict_operators(trace_operators(model, example), raw).total_us)
            measured.append(measure(path, profile).median_us)
    return fit_calibration(predicted, measured)


def fit_calibration(predicted: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """The factor and the overhead, in microseconds and not negative, with the least relative errors.

    >>> fit_calibration([100.0, 200.0], [115.0, 225.0])
    (1.1, 5.0)
    >>> fit_calibration([100.0, 200.0], [95.0, 205.0])
    (0.9875, 0.0)
    >>> fit_calibration([10.0, 10.4], [12.0, 11.0])
    (1.1288, 0.0)
    """
    sums, true = np.array(predicted), np.array(measured)
    design = np.stack([sums, np.ones_like(sums)], axis=1) / true[:, None]
    factor, overhead = (float(value) for value in np.linalg.lstsq(design, np.ones_like(true), rcond=None)[0])
    if overhead < 0 or factor <= 0 or len(true) < 2:
        # The median is not moved by the few smallest networks, where an overhead would matter, nor by noise
        # between networks that are too much alike to tell a factor from an overhead.
        factor, overhead = float(np.median(true / sums)), 0.0
    return round(factor, 4), round(overhead, 2)


def to_toml(profile: DeviceProfile) -> str:
    """A profile as the text of ``profile.toml``."""
    record = profile.model_dump(mode="json", by_alias=True, exclude_none=True)
    lines = [f"schema = {record.pop('schema')}", f"name = {json.dumps(record.pop('name'))}"]
    for section, content in record.items():
        tables = content if isinstance(content, list) else [content]
        for table in tables:
            lines.append("")
            lines.append(f"[[{section}]]" if isinstance(content, list) else f"[{section}]")
            lines += [f"{key} = {_toml_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return json.dumps(value)
