"""A profile made true for this machine: which rows count as measured here, and what is told of it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hwprune.device.library import load_profile
from hwprune.device.profile import DeviceProfile
from hwprune.device.rows import Row
from hwprune.device.steps import Steps
from hwprune.device.working_set import size_class
from hwprune.notes import log_note
from hwprune.operators import Operator
from hwprune.runtime import local, sampling
from hwprune.runtime.base import runtime_for
from hwprune.runtime.environment import environment
from hwprune.targets import Keep
from hwprune.train.loop import Recipe
from hwprune.variants import Grid

#: What measuring gives here, unlike anything in a shipped table.
HERE_US = 12345.0


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Operator]:
    """Operators that were measured, at no cost; nothing is cached."""
    asked: list[Operator] = []

    def measure(
        operators: Sequence[Operator], *_arguments: object, working_set: int, **_options: object
    ) -> tuple[Row, ...]:
        asked.extend(operators)
        steps = [each for operator in operators for each in _narrower(operator)]
        return tuple(Row(replace(each, name=""), HERE_US, among=size_class(working_set)) for each in steps)

    monkeypatch.setattr(local, "measure_rows", measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return asked


def _narrower(operator: Operator) -> list[Operator]:
    widths = range(1, operator.out_channels + 1)
    return [replace(operator, in_channels=width, out_channels=width) for width in widths]


def travelling(profile: DeviceProfile) -> DeviceProfile:
    """The profile as a variant carries it, rows included."""
    grid = Grid(["lenet5"], "digits", {"device": profile}, [Keep(0.5)], Recipe(1))
    return grid.variants()[0].profile


def a_row_of(profile: DeviceProfile) -> Row:
    """The narrowest pooling: a row that is looked up by its channels alone, and covers nothing else."""
    assert profile.table is not None
    pools = [row for row in profile.table if row.operator.kind == "max_pool"]
    return min(pools, key=lambda row: row.operator.out_channels)


def test_rows_that_travelled_from_another_machine_are_measured_again(measured: list[Operator]) -> None:
    shipped = load_profile("x86-avx2-ort")
    foreign = shipped.model_copy(
        update={"hardware": shipped.hardware.model_copy(update={"model": "a machine elsewhere"})}
    )
    row = a_row_of(foreign)
    here = local.localize(travelling(foreign), [row.operator], notify=lambda line: None)
    assert measured == [row.operator]
    assert here.table is not None
    assert here.table.latency_us(row.operator) == HERE_US
    assert {kept.undisturbed_us for kept in here.table} == {HERE_US}


def test_rows_that_travelled_to_the_machine_they_were_measured_on_count(measured: list[Operator]) -> None:
    shipped = load_profile("x86-avx2-ort")
    facts = environment()
    here = shipped.hardware.model_copy(
        update={"model": str(facts["cpu"]), "isa": str(facts["isa"]), "cores": int(facts["cores"])}
    )
    spec = shipped.runtime.model_copy(update={"version": runtime_for(shipped.runtime).version()})
    profile = travelling(shipped.model_copy(update={"hardware": here, "runtime": spec}))
    row = a_row_of(profile)
    # A node that shares no disk finds no file: the rows that travelled are all there is.
    profile = profile.model_copy(update={"folder": None})
    kept = local.localize(profile, [row.operator], notify=lambda line: None)
    assert not measured
    assert kept.table == profile.table


def test_rows_among_few_bytes_are_not_taken_for_those_among_many(measured: list[Operator]) -> None:
    """What stays in a cache in a small network does not in a large one."""
    profile = load_profile("any-cpu-ort")
    pool, sum_of_8_mib = Operator("max_pool", 4, 4, 4, 4, 2, 2), Operator("add", 64, 64, 128, 128)
    for network, expected in (
        ([pool], [pool]),
        ([sum_of_8_mib, pool], [sum_of_8_mib, pool]),
        ([pool], []),
        ([pool, sum_of_8_mib], []),
    ):
        measured.clear()
        here = local.localize(profile, network, notify=lambda line: None)
        assert measured == expected
        assert here.table is not None
        assert all(here.table.covers(operator) for operator in network)


@pytest.mark.parametrize(("found", "kept"), [(Steps(16), 16), (Steps(4), 4), (Steps(), 8)])
def test_where_no_step_shows_that_of_the_profile_stays(found: Steps, kept: int) -> None:
    """Steps drown in the noise of a busy machine; prices of single channels would be those of no kernel."""
    lines: list[str] = []
    profile = load_profile("x86-avx2-ort")
    conv = Operator("conv", 64, 64, 8, 8, 3, 3, padding=1)
    here = local.for_this_machine(profile, [conv], lines.append, lambda _probe, _spec: found)
    assert here.steps_for(conv).align == kept
    assert f"leave in groups of {kept}" in lines[0]
    assert ("no step of conv shows" in lines[0]) is (found == Steps())


def test_rows_on_the_spot_have_a_deadline_and_show_how_far_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seconds: list[float] = []

    def measure(
        operators: Sequence[Operator], *_arguments: object, **options: Callable[[int, int], None] | float
    ) -> tuple[Row, ...]:
        limit, progress = options["seconds"], options["progress"]
        assert isinstance(limit, float)
        assert callable(progress)
        seconds.append(limit)
        progress(3, 10)
        # A row nobody asked for: what is missing is looked for again.
        return (Row(replace(operators[0], name="", out_channels=len(seconds), in_channels=1), HERE_US),)

    clock = itertools.count(0.0, 20.0)
    monkeypatch.setattr(local, "SPLITTING_SECONDS", 45.0)
    monkeypatch.setattr(local, "measure_rows", measure)
    for module in (local, sampling):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lines: list[str] = []
    template = load_profile("any-cpu-ort")
    local.localize(template, [Operator("add", 3, 3, 4, 4)], notify=lines.append)
    assert 0 < seconds[0] < local.SPLITTING_SECONDS
    assert seconds[1:] == [0.0] * len(seconds[1:])  # one deadline for all passes
    assert len(seconds) > 1
    assert "3 rows measured, 7 more known to be needed so far" in lines


def test_who_set_up_no_logging_sees_that_rows_are_measured(
    measured: list[Operator], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="hwprune")
    local.localize(load_profile("any-cpu-ort"), [Operator("max_pool", 4, 4, 4, 4, 2, 2)], notify=log_note)
    assert measured
    told = {record.getMessage(): record.levelno for record in caplog.records}
    assert any("has no measured table" in line for line in told)
    for line, level in told.items():
        assert level == (logging.WARNING if "table" in line or "measuring rows" in line else logging.INFO)
