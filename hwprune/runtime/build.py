"""Builds a device profile on this machine: steps, rows, and a calibration on whole networks."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from hwprune.device.predict import predict_operators
from hwprune.device.profile import PROFILE_FILE, DeviceProfile
from hwprune.device.rows import Row
from hwprune.device.table import LatencyTable
from hwprune.errors import ProfileError
from hwprune.files import write_text
from hwprune.graph.trace import trace_operators
from hwprune.operators import Operator
from hwprune.runtime.environment import environment, versions
from hwprune.runtime.export import export
from hwprune.runtime.local import for_this_machine
from hwprune.runtime.rows import measure_rows
from hwprune.runtime.sampling import measure_operators
from hwprune.runtime.timing import measure_alternately

TABLE_FILE = "latency.csv"
#: A machine whose reference kernel differs by more than this between start, middle and end is busy.
STEADY = 0.05
_REFERENCE = Operator("conv", 64, 64, 28, 28, 3, 3, padding=1)


@dataclass(frozen=True, slots=True)
class NetworkError:
    """Predicted against measured latency of one network.

    Attributes:
        name: The network.
        predicted_us: From the table.
        measured_us: Median on this machine.
    """

    name: str
    predicted_us: float
    measured_us: float

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted_us / self.measured_us - 1


Networks = Mapping[str, tuple[nn.Module, Tensor]]


def build_profile(
    template: DeviceProfile,
    networks: Networks,
    out: Path,
    *,
    command: str,
    notify: Callable[[str], None],
) -> tuple[DeviceProfile, tuple[NetworkError, ...]]:
    """Measures this machine and writes a profile that covers networks and everything narrower.

    Args:
        template: Runtime, precision, threads, batch and rules; its steps are found anew.
        networks: Name to a network and an example input.
        out: The profile's folder; its last part is the profile's name.
        command: How it was built, for the record.
        notify: Called with one line for every stage.

    Returns:
        The profile, and predicted against measured for each network (they also fitted the calibration).

    Raises:
        ProfileError: If the machine is busy: then nothing is written.
    """
    spec = template.runtime
    reference = [_reference_us(template)]
    local = for_this_machine(template, _operators(networks), notify)
    operators = _operators(networks)
    rows: dict[Operator, Row] = {}
    table = LatencyTable((), spec.batch, spec.precision)
    while missing := [op for op in operators if not table.covers_narrower(op, local.steps_for(op))]:
        notify(f"measuring rows for {len(missing)} operators")
        fresh = {row.operator: row for row in measure_rows(missing, local)}
        if not fresh.keys() - rows.keys():
            break
        rows |= fresh
        table = LatencyTable(tuple(rows.values()), spec.batch, spec.precision)
        reference.append(_reference_us(template))
    local = local.model_copy(update={"rows": table, "name": out.name})
    notify(f"{len(table)} rows; measuring {len(networks)} networks")
    errors, factor, overhead = _calibrate(local, networks)
    reference.append(_reference_us(template))
    if max(reference) > (1 + STEADY) * min(reference):
        raise ProfileError(
            "the machine is busy: a reference kernel did not take the same time throughout",
            expected=f"within {STEADY:.0%}",
            got=", ".join(f"{value:.1f} us" for value in reference),
            hint="stop what else is running and build again; nothing was written",
        )
    facts = environment()
    noise = statistics.median(row.p90_us / row.p10_us - 1 for row in table.rows)
    local = local.model_copy(
        update={
            "latency": local.latency.model_copy(
                update={"table": TABLE_FILE, "calibration": factor, "overhead_us": overhead}
            ),
            "provenance": local.provenance.model_copy(
                update={
                    "source": "measured",
                    "command": command,
                    "date": str(facts["date"]),
                    "host": str(facts["cpu"]),
                    "versions": versions(),
                    "runs": int(statistics.median(row.runs for row in table.rows)),
                    "noise": round(noise, 4),
                }
            ),
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    table.write(out / TABLE_FILE, {**facts, "command": command})
    write_text(out / PROFILE_FILE, to_toml(local))
    return local, errors


def _operators(networks: Networks) -> list[Operator]:
    return [operator for model, example in networks.values() for operator in trace_operators(model, example)]


def _reference_us(template: DeviceProfile) -> float:
    (row,) = measure_operators([_REFERENCE], template.runtime)
    return row.median_us


def _calibrate(profile: DeviceProfile, networks: Networks) -> tuple[tuple[NetworkError, ...], float, float]:
    """Factor and overhead that fit whole networks best, in relative terms."""
    raw = profile.model_copy(
        update={
            "latency": profile.latency.model_copy(
                update={"calibration": 1.0, "overhead_us": 0.0, "per_operator_us": 0.0}
            )
        }
    )
    predicted = np.array(
        [predict_operators(trace_operators(*network), raw).total_us for network in networks.values()]
    )
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in networks}
        for name, (model, example) in networks.items():
            export(model, paths[name], example)
        timings = measure_alternately(paths, profile)
    measured = np.array([timings[name].median_us for name in networks])
    design = np.stack([predicted, np.ones_like(predicted)], axis=1) / measured[:, None]
    factor, overhead = (float(value) for value in np.linalg.lstsq(design, np.ones_like(measured))[0])
    if overhead < 0 or len(networks) < 2:
        factor, overhead = float(np.mean(measured / predicted)), 0.0
    factor, overhead = round(factor, 4), round(overhead, 2)
    errors = tuple(
        NetworkError(name, factor * float(sum_us) + overhead, float(true_us))
        for name, sum_us, true_us in zip(networks, predicted, measured, strict=True)
    )
    return errors, factor, overhead


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
