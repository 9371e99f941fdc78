"""Builds a device profile on this machine: steps, rows, and a calibration on whole networks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hwprune.device.library import read_profile
from hwprune.device.profile import PROFILE_FILE, DeviceProfile, LatencySpec, Provenance, RuntimeSpec
from hwprune.device.profile_text import to_toml
from hwprune.device.table import LatencyTable
from hwprune.errors import InputError, ProfileError
from hwprune.files import write_text
from hwprune.folder_lock import alone_in
from hwprune.graph.trace import trace_operators
from hwprune.operators import Operator
from hwprune.runtime.base import check_batch, get_runtime, runtime_for
from hwprune.runtime.calibration import Measured, Networks, as_spec, calibrate, write_calibration
from hwprune.runtime.environment import environment, same_hardware, versions
from hwprune.runtime.local import for_this_machine
from hwprune.runtime.partial import PartialBuild, partial_file
from hwprune.runtime.processor import machine
from hwprune.runtime.rows import (
    check_measurable,
    measure_rows,
    measure_with_zeros,
    with_zeros,
)
from hwprune.runtime.sampling import Progress
from hwprune.runtime.staircase import PROBES
from hwprune.runtime.steady import Watch, reference_kernel, thirds
from hwprune.runtime.workbench import Workbench

TABLE_FILE = "latency.csv"


@dataclass(frozen=True, slots=True, eq=False)
class BuildRequest:
    """What to build.

    Attributes:
        template: Runtime, precision, threads, batch and rules; its steps are found anew.
        networks: Name to a network and an example input.
        samples: From the profile with its steps to networks, no wider, that the calibration is fitted to.
        out: The profile's folder; its last part is the profile's name.
        command: How it was built, for the record.
        anew: Forget an unfinished build, and replace a profile instead of adding to it.
        allow_busy: Measure although the machine is busy; the profile says so.
        passes: How often everything is measured, pass by pass; the least disturbed measurements count. What
            a later pass first asks for is measured from there on.
    """

    template: DeviceProfile
    networks: Networks
    samples: Callable[[DeviceProfile], Networks]
    out: Path
    command: str
    anew: bool = False
    allow_busy: bool = False
    passes: int = 1


def build_profile(
    request: BuildRequest, notify: Callable[[str], None], progress: Progress | None = None
) -> DeviceProfile:
    """Measures this machine and writes a profile that covers networks and everything narrower.

    A profile of this machine that is there already gets the rows that it lacks and keeps its
    calibration. What is measured is kept beside the folder until the profile is complete: an interrupted
    build goes on with it.

    Args:
        request: What to build.
        notify: Called with one line for every stage.
        progress: Called with the number of rows done and known to be needed so far.

    Returns:
        The profile.

    Raises:
        RuntimeUnavailableError: If the runtime is missing, or cannot run what the template says.
        MissingRowError: If a network holds an operator that cannot be measured.
        InputError: If it is to have more threads than the machine has cores.
        ProfileError: If the machine is busy, or the folder holds a profile of another device.
        ArtifactError: If an unfinished build of something else is there, or another one is under way.
    """
    with alone_in(request.out):
        return _build_profile(request, notify, progress)


def _build_profile(
    request: BuildRequest, notify: Callable[[str], None], progress: Progress | None
) -> DeviceProfile:
    traced = {name: trace_operators(*network) for name, network in request.networks.items()}
    _check_possible(request.template.runtime, traced)
    partial = PartialBuild.open(partial_file(request.out), _settings(request), anew=request.anew)
    begun = bool(partial.seen_us)
    replacing = not partial.extends if begun else request.anew
    before = None if replacing else measured_profile(request.out, request.template)
    partial.extends = before is not None
    if begun:
        notify(f"going on with {len(partial.rows)} rows of an unfinished build ({partial.path.name})")
    if before is not None and not _uncovered(before, traced):
        notify("the profile covers these networks already; --anew measures everything again")
        return before
    with reference_kernel(request.template.runtime) as look_us:
        seen_before = None if before is None else before.provenance.reference_us
        watch = Watch(look_us, notify, request.allow_busy, partial.seen_us, partial.busy, seen_before)
        bench = Workbench(partial, watch, progress)
        try:
            watch.begin(watch.usual_us if begun else seen_before)
            fitted_to: list[Measured] = []
            if before is None:
                built, fitted_to = _from_nothing(request, traced, bench, notify)
            else:
                notify(f"adding to {len(before.table or ())} rows of {before.name}; its calibration stays")
                latency = before.latency.model_copy(update={"table": TABLE_FILE})
                table = _measure_in_passes(request, before, traced, bench, notify)
                built = before.model_copy(update={"rows": table, "latency": latency})
            watch.finish("with --anew" if before is None else f"once {partial.path.name} is removed")
        finally:
            bench.save(now=True)
    complete = _with_provenance(built, before, request, watch)
    return _written(complete, fitted_to, request.out, watch, partial)


def _check_possible(spec: RuntimeSpec, networks: Mapping[str, Sequence[Operator]]) -> None:
    """Raises where a build could not end, before anything is measured and kept of it."""
    runtime_for(spec)
    check_batch(spec)
    cores = int(environment()["cores"])
    if spec.threads > cores:
        raise InputError(
            "the machine has fewer cores than the device is to have threads",
            where="threads",
            expected=f"at most {cores}",
            got=spec.threads,
        )
    check_measurable([operator for operators in networks.values() for operator in operators], spec.kind)


def measured_profile(out: Path, template: DeviceProfile) -> DeviceProfile | None:
    """The measured profile in a folder, ``None`` where there is none.

    Raises:
        ProfileError: If it is malformed, of another machine, or of another way of running networks.
    """
    if not (out / PROFILE_FILE).is_file():
        return None
    profile = read_profile(out)
    if profile.table is None:
        return None
    same, difference = same_hardware(profile)
    wanted, got = (
        spec.model_dump(include={"kind", "precision", "threads", "batch"})
        for spec in (template.runtime, profile.runtime)
    )
    if wanted != got:
        difference = _told(got) + " in the profile"
    if not same or wanted != got:
        raise ProfileError(
            "the folder holds the profile of another device, to which nothing measured here can be added",
            where=out,
            expected=f"one of this machine with {_told(wanted)}",
            got=difference,
            hint="name another folder with --out, or replace it with --anew",
        )
    return profile


def _settings(request: BuildRequest) -> dict[str, str]:
    """What measurements must have in common to be of one profile."""
    spec = request.template.runtime
    return {
        **{name: str(value) for name, value in machine().items() if name != "python"},
        "runtime": f"{spec.kind} {get_runtime(spec.kind).version()}",
        "precision": spec.precision,
        "threads": str(spec.threads),
        "batch": str(spec.batch),
        "networks": ", ".join(request.networks),
    }


def _told(spec: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in spec.items())


def _uncovered(profile: DeviceProfile, networks: Mapping[str, Sequence[Operator]]) -> list[Operator]:
    """The operators of networks that the profile does not price at every narrower width."""
    if profile.table is None:
        return [operator for operators in networks.values() for operator in operators]
    return [
        operator
        for operators in networks.values()
        for table in [profile.table.among(profile.row_working_set(operators))]
        for operator in operators
        if not table.covers_narrower(operator, profile.steps_for(operator))
    ]


def _from_nothing(
    request: BuildRequest,
    traced: Mapping[str, Sequence[Operator]],
    bench: Workbench,
    notify: Callable[[str], None],
) -> tuple[DeviceProfile, list[Measured]]:
    """Steps, rows and calibration of this machine, and what that was fitted to."""
    notify("looking for the steps of the latency staircase")
    operators = [operator for network in traced.values() for operator in network]
    local = for_this_machine(request.template, [*operators, *PROBES.values()], notify, bench.steps)
    table = _measure_in_passes(request, local, traced, bench, notify)
    local = local.model_copy(update={"rows": table, "name": request.out.absolute().name})
    fitted_to = request.samples(local)
    notify(f"{len(table)} rows; fitting the calibration to {len(fitted_to)} networks")
    fitted, measured = calibrate(local, fitted_to, bench, request.passes)
    latency = LatencySpec(table=TABLE_FILE).model_copy(update=as_spec(fitted))
    return local.model_copy(update={"latency": latency}), measured


def _measure_in_passes(
    request: BuildRequest,
    profile: DeviceProfile,
    networks: Mapping[str, Sequence[Operator]],
    bench: Workbench,
    notify: Callable[[str], None],
) -> LatencyTable:
    """The table after all passes: in each, what is known is measured again, then what that shows to lack."""
    table = _measure_table(profile, networks, bench, notify)
    for number in range(bench.passes + 1, request.passes):
        notify(f"pass {number + 1} of {request.passes}: all rows again, of which the least disturbed count")
        bench.rows_again(profile.runtime)
        table = _measure_table(profile, networks, bench, notify)
        bench.passes = number
    return table


def _measure_table(
    profile: DeviceProfile,
    networks: Mapping[str, Sequence[Operator]],
    bench: Workbench,
    notify: Callable[[str], None],
) -> LatencyTable:
    """The profile's rows and those that networks and everything narrower need besides, network by network."""
    table = profile.table or LatencyTable((), profile.runtime.batch, profile.runtime.precision)
    for place, (name, operators) in enumerate(networks.items(), start=1):
        size = profile.row_working_set(operators)
        while missing := _uncovered(profile.model_copy(update={"rows": table}), {name: operators}):
            notify(
                f"{name} (network {place} of {len(networks)}): measuring rows for {len(missing)} of "
                f"{len(operators)} operators"
            )
            fresh = measure_rows(
                missing, profile, working_set=size, unaligned=True, time_operators=bench.rows
            )
            if not {row.operator for row in fresh} - table.among(size).operators:
                break  # nothing new to learn; a prediction will name what is missing
            # What networks of one size share keeps the row of the first.
            table = replace(table, rows=()).merged([*fresh, *table.rows])
        if profile.prices_zeros:
            known = table.among(size)
            sparse = [operator for operator in with_zeros(operators) if not known.covers(operator)]
            if sparse:
                notify(f"{name}: measuring {len(sparse)} operators with weights of zero")
            table = table.merged(
                measure_with_zeros(sparse, profile, working_set=size, time_operators=bench.rows)
            )
    return table


def _with_provenance(
    profile: DeviceProfile, before: DeviceProfile | None, request: BuildRequest, watch: Watch
) -> DeviceProfile:
    facts, rows = environment(), profile.rows or ()
    earlier = before.provenance if before else None
    noise = statistics.median(row.noise for row in rows)
    reference_us = (earlier and earlier.reference_us) or round(watch.reference_us, 2)
    provenance = Provenance(
        source="measured",
        command=f"{earlier.command} && {request.command}" if earlier else request.command,
        date=str(facts["date"]),
        host=profile.hardware.model,
        versions=versions(),
        runs=int(statistics.median(row.runs for row in rows)),
        noise=round(noise, 4),
        reference_us=reference_us,
        passes=min(request.passes, earlier.passes) if earlier else request.passes,
        busy=watch.busy or (earlier is not None and earlier.busy),
    )
    return profile.model_copy(update={"provenance": provenance})


def _written(
    profile: DeviceProfile, fitted_to: Sequence[Measured], out: Path, watch: Watch, partial: PartialBuild
) -> DeviceProfile:
    """Writes table, calibration and profile, then forgets what was kept of the build."""
    noise = ", ".join(f"{statistics.median(part):.1f}" for part in thirds(watch.seen_us))
    header = {
        **environment(),
        "command": profile.provenance.command,
        f"reference kernel at start, middle and end (us, {len(watch.seen_us)} looks)": noise,
        "rows are scaled to a reference kernel of (us)": f"{watch.reference_us:.1f}",
    }
    table = profile.rows
    assert table is not None  # it was just measured
    out.mkdir(parents=True, exist_ok=True)
    table.write(out / TABLE_FILE, header)
    if fitted_to:
        write_calibration(out, fitted_to)
    write_text(out / PROFILE_FILE, to_toml(profile))
    partial.remove()
    return profile
