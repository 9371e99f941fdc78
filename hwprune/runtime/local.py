"""A profile made true for this machine: rows that are missing, or were measured elsewhere, are measured."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from platformdirs import user_cache_path

from hwprune.device.predict import table_of
from hwprune.device.profile import DeviceProfile, Provenance, Rule, RuntimeSpec
from hwprune.device.rows import Row
from hwprune.device.steps import Steps
from hwprune.device.table import LatencyTable
from hwprune.errors import ProfileError
from hwprune.files import write_json
from hwprune.notes import Weighty
from hwprune.operators import Operator
from hwprune.runtime.base import runtime_for
from hwprune.runtime.environment import environment, hardware_for, same_hardware
from hwprune.runtime.rows import measure_rows, measure_with_zeros
from hwprune.runtime.sampling import telling_rows
from hwprune.runtime.staircase import PROBES, find_steps

#: How rows and steps are measured: those that were measured in another way are not used.
MEASURED_AS = 8
#: Intervals between widths are split for so long; then what is left of them is taken for straight.
SPLITTING_SECONDS = 45.0
#: Seconds between two lines about the rows.
ROWS_INTERVAL = 15.0

#: From a probe and the way of running it to its staircase.
FindSteps = Callable[[Operator, RuntimeSpec], Steps]


def localize(
    profile: DeviceProfile, operators: Sequence[Operator], *, notify: Callable[[str], None]
) -> DeviceProfile:
    """Returns a profile whose table holds for this machine and covers a network.

    A profile measured on this very machine is used as it is, completed by the rows it lacks. Any other is
    taken for its runtime and rules only: the channel step and all rows are measured here, once, and
    kept in the user's cache. No more widths are measured than :data:`SPLITTING_SECONDS` are enough for, or
    than every operator needs to have a price: those between are interpolated.

    Args:
        profile: The device asked for.
        operators: Fused operators of the dense network, and those with weights of zero that are to be priced.
        notify: Called with one line for everything the user should know.

    Raises:
        RuntimeUnavailableError: If the runtime is not on this machine.
        ProfileError: If the profile's table is malformed.
    """
    runtime_for(profile.runtime)
    shipped = profile.table  # read, and so checked, even where it was measured on another machine
    same, difference = same_hardware(profile)
    if same and shipped is not None:
        local = profile.for_network(operators, pruned=True)
        table = table_of(local)
    else:
        why = "has no measured table" if shipped is None else "was measured on another machine"
        notify(Weighty(f"profile {profile.name} {why}{f' ({difference})' if difference else ''}"))
        local = for_this_machine(profile, operators, notify)
        table = local.table or LatencyTable(
            (), profile.runtime.batch, profile.runtime.precision, command=profile.build_command()
        )
    missing = _missing(operators, local, table)
    if not missing:
        return local
    size = local.row_working_set(operators)
    cache = cache_folder(local) / "latency.csv"
    table = table.merged(LatencyTable(_cached_rows(cache)).among(size))
    deadline = time.monotonic() + SPLITTING_SECONDS
    # Measured for the widest operator of every configuration, so that a narrow one off its lattice (the
    # first layer's single channel) can be missing still: it is the widest of the next pass.
    while missing := _missing(operators, local, table):
        notify(
            Weighty(
                f"measuring rows for {len(missing)} operators on this machine; they are kept for next time"
            )
        )
        fresh = _measured(missing, local, size, deadline=deadline, notify=notify)
        if not {row.operator for row in fresh} - table.operators:
            break  # nothing new to learn; the prediction will name what is missing
        table = table.merged(fresh)
        cache.parent.mkdir(parents=True, exist_ok=True)
        kept = LatencyTable((), table.batch, table.precision).merged([*_cached_rows(cache), *fresh])
        kept.write(cache, environment())
    return local.model_copy(update={"rows": table}).for_network(operators, pruned=True)


def without_foreign_rows(profile: DeviceProfile) -> DeviceProfile:
    """The profile with its table where that was measured on this machine, else without one.

    Args:
        profile: The device asked for; nothing is measured, and its rules stay as they are.

    Raises:
        ProfileError: If the profile's table is malformed.
    """
    if profile.table is None or same_hardware(profile)[0]:
        return profile
    latency = profile.latency.model_copy(update={"table": None})
    return profile.model_copy(update={"rows": None, "latency": latency})


def _measured(
    missing: Sequence[Operator],
    profile: DeviceProfile,
    size: int,
    *,
    deadline: float,
    notify: Callable[[str], None],
) -> tuple[Row, ...]:
    """Rows for operators that the table lacks, with and without weights of zero."""
    tell, seconds = telling_rows(notify, ROWS_INTERVAL), max(deadline - time.monotonic(), 0.0)
    whole = [operator for operator in missing if operator.density == 1]
    zeros = [operator for operator in missing if operator.density < 1]
    return (
        *(
            measure_rows(
                whole,
                profile,
                working_set=size,
                progress=tell,
                seconds=seconds,
                unaligned=any(_is_off_the_divisor(operator, profile) for operator in whole),
            )
            if whole
            else ()
        ),
        *measure_with_zeros(zeros, profile, working_set=size),
    )


def _is_off_the_divisor(operator: Operator, profile: DeviceProfile) -> bool:
    """Whether whoever reads it, beside what others write, may be left with inputs that run another kernel."""
    return bool(operator.matrix and operator.out_channels % profile.steps_for(operator).divisor)


def _missing(operators: Sequence[Operator], profile: DeviceProfile, table: LatencyTable) -> list[Operator]:
    """The operators that the table does not cover from one step to full width."""
    return [
        operator for operator in operators if not table.covers_narrower(operator, profile.steps_for(operator))
    ]


def for_this_machine(
    profile: DeviceProfile,
    operators: Sequence[Operator],
    notify: Callable[[str], None],
    find: FindSteps | None = None,
) -> DeviceProfile:
    """The profile with this machine's hardware and channel steps, and no rows.

    Args:
        profile: Runtime, precision, threads, batch and rules.
        operators: Only the steps of rules that decide for one of them are looked for.
        notify: Called with one line for every rule.
        find: Finds a staircase; by default it is found once per machine and kept in the user's cache.
    """
    hardware = hardware_for(profile.runtime)
    deciding = [profile.rule_for(operator) for operator in operators]
    rules = tuple(
        _rule_here(rule, profile, notify, find) if rule in deciding else rule for rule in profile.rule
    )
    version = runtime_for(profile.runtime).version()
    return profile.model_copy(
        update={
            "rule": rules,
            "hardware": hardware,
            "runtime": profile.runtime.model_copy(update={"version": version}),
            "provenance": Provenance(source="measured", date=str(environment()["date"]), host=hardware.model),
            "latency": profile.latency.model_copy(
                update={
                    **dict.fromkeys(("table", "kernels", "held_mib", "spilled_us")),
                    "calibration": 1.0,
                    "overhead_us": 0.0,
                    "per_operator_us": 0.0,
                }
            ),
            "rows": None,  # those that travelled with the profile are another machine's as well
        }
    )


def _rule_here(
    rule: Rule, profile: DeviceProfile, notify: Callable[[str], None], find: FindSteps | None
) -> Rule:
    """A rule with the staircase of this machine."""
    probe = PROBES.get((rule.op, rule.groups))
    if probe is None or rule.granularity != "channel":
        return rule
    name = f"{rule.groups} {rule.op}" if rule.groups else rule.op
    steps = find(probe, profile.runtime) if find else _cached_steps(name, probe, profile)
    if steps.align == 1 and rule.align > 1:
        # Noise hides steps and makes none. Between widths that are none of the device's, a table would
        # interpolate where single channels cost.
        notify(f"no step of {name} shows on this machine: channels leave in groups of {rule.align} as before")
        return rule
    notify(f"channels of {name} leave in groups of {steps.align}: the step measured on this machine")
    period = steps.period if steps.period > steps.align else None
    return rule.model_copy(update={"align": steps.align, "period": period, "divisor": steps.divisor})


def _cached_steps(name: str, probe: Operator, profile: DeviceProfile) -> Steps:
    """The staircase of a rule, measured once and kept in the user's cache."""
    path = cache_folder(profile) / f"steps {name}.json"
    steps = _read_steps(path)
    if steps is None:
        steps = find_steps(probe, profile.runtime)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(steps))
    return steps


def _read_steps(path: Path) -> Steps | None:
    """Steps found earlier; ``None`` where there are none or they are unreadable (it is only a cache)."""
    try:
        return Steps(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def cache_folder(profile: DeviceProfile) -> Path:
    """Where rows measured on this machine for this way of running networks are kept."""
    hardware = hardware_for(profile.runtime)
    version = runtime_for(profile.runtime).version()
    spec = profile.runtime.model_copy(update={"version": version})
    machine = hardware.model, hardware.isa, hardware.cores
    key = json.dumps([spec.model_dump(mode="json"), *machine, MEASURED_AS])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return user_cache_path("hwprune") / "rows" / digest


def _cached_rows(path: Path) -> tuple[Row, ...]:
    """Rows measured earlier; none where the file is missing or unreadable (it is only a cache)."""
    if not path.is_file():
        return ()
    try:
        return LatencyTable.read(path).rows
    except ProfileError:
        return ()
