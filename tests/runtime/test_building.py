"""Building a profile: what counts on a busy machine, and what an interrupted build leaves."""

from __future__ import annotations

import itertools
import json
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import mul
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune.device.profile import DeviceProfile, RuntimeSpec
from hwprune.device.rows import Row
from hwprune.device.steps import Steps
from hwprune.errors import ArtifactError, InputError, MissingRowError, ProfileError, RuntimeUnavailableError
from hwprune.operators import Operator
from hwprune.runtime import build, calibration, steady, workbench
from hwprune.runtime.base import REGISTRY
from hwprune.runtime.build import BuildRequest, build_profile
from hwprune.runtime.interrupts import finishing
from hwprune.runtime.partial import PartialBuild, partial_file
from hwprune.runtime.sampling import Progress
from hwprune.runtime.steady import Watch
from hwprune.sampled_networks import Network, at_random_widths

CONV = Operator("conv", 8, 16, 6, 6, 3, 3, padding=1)


def watch(looks: Sequence[float], *, allow_busy: bool = False) -> tuple[Watch, list[str]]:
    """A watch over a machine that is given, waiting for nothing, and what it said."""
    said: list[str] = []
    left = iter(looks)
    seen = [100.0] * 9
    return Watch(lambda: next(left), said.append, allow_busy, seen, wait=lambda seconds: None), said


@pytest.mark.parametrize("look", [98.0, 102.0])
def test_what_is_measured_counts_at_once_while_nothing_disturbs_the_machine(look: float) -> None:
    calm, said = watch([look])
    assert calm.measure(lambda: "result") == "result"
    assert (calm.seen_us[9:], calm.busy, said) == ([look], False, [])


@pytest.mark.parametrize("look", [85.0, 109.0])
def test_what_is_measured_while_the_clock_moves_is_measured_again_and_scaled(look: float) -> None:
    moving, said = watch([look, look + 0.5])
    results = iter([10.0, 12.0])
    assert moving.measure(lambda: next(results), mul) == pytest.approx(12.0 * 100.0 / (look + 0.25))
    assert (moving.seen_us[9:], moving.busy, said) == ([look, look + 0.5], False, [])


def test_a_clock_that_never_rests_is_taken_at_the_middle() -> None:
    restless, said = watch([95.0, 105.0] * steady.MOVES)
    results = iter(range(1, 100))
    assert restless.measure(lambda: float(next(results)), mul) == pytest.approx(float(steady.MOVES))
    assert said == []


def test_what_is_added_is_scaled_to_the_pace_of_what_is_there() -> None:
    adding, _ = watch([100.0] * 10)
    adding.base_us = 105.0
    adding.begin(105.0)
    assert adding.measure(lambda: 10.0, mul) == pytest.approx(10.5)
    assert adding.reference_us == 105.0


def test_what_was_disturbed_is_measured_again_when_the_machine_is_calm() -> None:
    results = iter(["slow", "true"])
    disturbed, said = watch([150.0, 160.0, 101.0, 99.0])
    assert disturbed.measure(lambda: next(results)) == "true"
    assert disturbed.seen_us[9:] == [99.0]
    assert len(said) == 1
    assert "150.0 us instead of 100.0 us" in said[0]


def test_a_clock_that_falls_by_a_fifth_and_stays_there_is_scaled_for() -> None:
    # 258 and 314 us are levels of one processor; the first look at the new one could be a disturbance.
    fallen, said = watch([122.0, 122.5, 122.0, 121.0])
    assert fallen.measure(lambda: 12.2, mul) == pytest.approx(12.2 * 100.0 / 122.25)
    assert len(said) == 1
    assert fallen.measure(lambda: 12.2, mul) == pytest.approx(12.2 * 100.0 / 121.5)
    checking, _ = watch([122.0, 122.0, 122.0], allow_busy=True)
    checking.measure(lambda: 12.2, mul)
    assert checking.measure(lambda: 12.2, mul) == pytest.approx(10.0)


def test_a_machine_that_is_disturbed_time_and_again_is_refused() -> None:
    busy, _ = watch([150.0] * 100)
    with pytest.raises(ProfileError, match="slower time and again") as caught:
        busy.measure(lambda: None)
    assert "--allow-busy" in str(caught.value)


def test_a_busy_machine_is_measured_where_that_is_asked_for_and_it_is_recorded() -> None:
    busy, _ = watch([150.0] * 18, allow_busy=True)
    for _ in range(18):
        assert busy.measure(lambda: "result") == "result"
    busy.finish()
    assert busy.busy


def test_a_machine_that_was_slower_at_first_is_refused_at_the_end() -> None:
    # The first look after each change is one at which the clock moved.
    calming, _ = watch([100.0] * 18 + [90.0] * 29 + [79.0] * 29)
    for _ in range(18 + 28 + 28):
        calming.measure(lambda: None)
    with pytest.raises(ProfileError, match="at the start, in the middle and at the end") as caught:
        calming.finish()
    assert "100.0 us, 90.0 us, 79.0 us" in str(caught.value)
    clocked, _ = watch([109.0] * 19)
    for _ in range(18):
        clocked.measure(lambda: None)
    clocked.finish()


def test_what_is_added_to_must_have_been_measured_while_the_machine_was_as_fast() -> None:
    same, _ = watch([100.0] * 9)
    same.begin(120.0)
    other, _ = watch([100.0] * 100)
    with pytest.raises(ProfileError, match="not as fast as when"):
        other.begin(130.0)


def interrupted(times: int, done: list[str], error: Exception | None = None) -> None:
    """A measurement during which somebody presses Ctrl-C."""
    with finishing():
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        if error is not None:
            raise error
        done.append("measured")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests run under nohup."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_waits_until_the_measurement_is_complete_and_a_second_one_does_not() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(1, done)
    assert done == ["measured"]
    with pytest.raises(KeyboardInterrupt):
        interrupted(2, done)
    assert done == ["measured"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_what_an_interrupt_made_go_wrong_is_an_interrupt() -> None:
    died = RuntimeUnavailableError("the converter was interrupted, too")
    with pytest.raises(KeyboardInterrupt):
        interrupted(1, [], died)
    with pytest.raises(RuntimeUnavailableError):
        interrupted(0, [], died)


def test_an_interrupt_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with finishing():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


SETTINGS = {"cpu": "a machine", "runtime": "onnxruntime 1.31.1", "networks": "small"}


def partial(path: Path) -> PartialBuild:
    found = PartialBuild.open(path, SETTINGS)
    found.seen_us += [55.5, 56.0]
    found.rows[1024, CONV] = Row(CONV, 3.0, 2.5, 4.25, 50)
    found.busy = True
    found.save(now=True)
    return found


def test_an_unfinished_build_is_read_as_it_was_left(tmp_path: Path) -> None:
    left = partial(tmp_path / "mine.partial.json")
    found = PartialBuild.open(left.path, SETTINGS)
    assert (found.seen_us, found.rows, found.steps) == (left.seen_us, left.rows, left.steps)
    assert found.busy
    assert not PartialBuild.open(left.path, SETTINGS, anew=True).rows
    assert list(tmp_path.iterdir()) == []
    found.save(now=True)
    found.remove()
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_build_lies_beside_a_folder_that_is_named_by_a_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert partial_file(Path()) == tmp_path / "mine.partial.json"


def test_an_unfinished_build_with_other_settings_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = partial(tmp_path / "mine.partial.json").path
    with pytest.raises(ArtifactError, match="other settings") as caught:
        PartialBuild.open(path, {**SETTINGS, "runtime": "onnxruntime 1.32.0"})
    assert "expected runtime onnxruntime 1.31.1, got runtime onnxruntime 1.32.0" in str(caught.value)
    assert path.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"mark": "something else"}', '{"mark": "hwprune profile build"}']
)
def test_a_file_that_is_no_unfinished_build_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.partial.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match="unfinished build"):
        PartialBuild.open(path, SETTINGS)


def small_network(channels: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 4),
    )


class Machine:
    """A machine on which everything takes as long as a formula says; it may break off."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        breaks_after: int | None = None,
        slowness: Callable[[], float] = lambda: 1.0,
        clock: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.slowness, self.clock = slowness, clock
        self.measured: list[Operator] = []
        self.breaks_after = breaks_after
        monkeypatch.setattr(workbench, "measure_operators", self.rows)
        monkeypatch.setattr(workbench, "find_steps", lambda probe, spec: building_steps())
        monkeypatch.setattr(workbench, "measure", self.network)
        for user in (build, calibration):
            monkeypatch.setattr(user, "reference_kernel", self.reference_kernel)

    @contextmanager
    def reference_kernel(self, _spec: RuntimeSpec) -> Iterator[Callable[[], float]]:
        """A reference kernel that takes as long as the clock says."""
        yield lambda: 100.0 * self.clock()

    def rows(
        self,
        operators: Sequence[Operator],
        spec: RuntimeSpec,
        progress: Progress | None = None,
        *,
        working_set: int,
    ) -> tuple[Row, ...]:
        if self.breaks_after is not None and len(self.measured) >= self.breaks_after:
            raise KeyboardInterrupt
        self.measured += operators
        return tuple(
            Row(operator, self.slowness() * self.clock() * operator.in_channels * operator.out_channels)
            for operator in operators
        )

    def network(self, _path: Path, _profile: DeviceProfile) -> hwprune.Timing:
        median = 50.0 * self.slowness() * self.clock()
        return hwprune.Timing(median, median, median, 9)


def building_steps() -> object:
    return Steps(align=8)


def request(out: Path, model: nn.Module | None = None, *, anew: bool = False) -> BuildRequest:
    template = hwprune.load_profile("any-cpu-ort")
    network = (model or small_network(), torch.zeros(2, 1, 8, 8))

    def samples(local: DeviceProfile) -> dict[str, tuple[nn.Module, torch.Tensor]]:
        return {"narrower": (small_network(8), torch.zeros(2, 1, 8, 8))}

    return BuildRequest(template, {"small": network}, samples, out, "hwprune profile build", anew=anew)


def test_an_interrupted_build_goes_on_with_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Machine(monkeypatch)
    build_profile(request(tmp_path / "whole"), lambda line: None)
    interrupted = Machine(monkeypatch, breaks_after=1)
    out = tmp_path / "mine"
    with pytest.raises(KeyboardInterrupt):
        build_profile(request(out), lambda line: None)
    assert not out.exists()
    kept = json.loads(partial_file(out).read_text())["rows"]
    assert 0 < len(kept) == len(interrupted.measured) < len(whole.measured)

    rest, said = Machine(monkeypatch), list[str]()
    build_profile(request(out), said.append)
    assert f"going on with {len(kept)} rows" in said[0]
    assert sorted(map(str, interrupted.measured + rest.measured)) == sorted(map(str, whole.measured))
    assert not partial_file(out).exists()
    tables = [hwprune.load_profile(tmp_path / name).table for name in ("whole", "mine")]
    assert all(table is not None for table in tables)
    assert set(tables[0] or ()) == set(tables[1] or ())


def neighbours() -> Callable[[], float]:
    """What is measured takes up to twice as long, by turns."""
    turns = itertools.count(1)
    return lambda: 1.0 + next(turns) % 3 / 2


def test_of_several_passes_the_least_disturbed_measurements_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(name: str, passes: int, machine: Machine) -> DeviceProfile:
        lines: list[str] = []
        made = build_profile(replace(request(tmp_path / name), passes=passes), lines.append)
        assert len([line for line in lines if line.startswith("pass ")]) == passes - 1
        assert made.provenance.passes == passes
        assert max(Counter(machine.measured).values()) == passes
        return made

    calm = built("calm", 1, Machine(monkeypatch))
    once = built("once", 1, Machine(monkeypatch, slowness=neighbours()))
    assert set(once.table or ()) != set(calm.table or ())
    often = built("often", 4, Machine(monkeypatch, slowness=neighbours()))
    wanted = {row.operator: row.undisturbed_us for row in calm.table or ()}
    got = {row.operator: row.undisturbed_us for row in often.table or ()}
    assert got.keys() >= wanted.keys()
    assert sum(got[operator] == wanted[operator] for operator in wanted) > 0.8 * len(wanted)


def test_a_build_while_the_clock_falls_is_the_one_of_a_steady_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steady, "STEADY", 1.0)
    Machine(monkeypatch)
    steady_clock = build_profile(request(tmp_path / "steady"), lambda line: None)
    falling = Machine(monkeypatch, clock=lambda: 1.25 if len(falling.measured) > 20 else 1.0)
    made = build_profile(request(tmp_path / "falling"), lambda line: None)
    assert falling.clock() > 1
    assert made.latency.calibration == steady_clock.latency.calibration
    assert made.provenance.reference_us == steady_clock.provenance.reference_us
    wanted = {row.operator: row.undisturbed_us for row in steady_clock.table or ()}
    assert {row.operator: row.undisturbed_us for row in made.table or ()} == pytest.approx(wanted, rel=1e-3)

    # What is added later, while the clock is at another level, is at the pace of what is there.
    more = Machine(monkeypatch, clock=lambda: 1.25)
    build_profile(request(tmp_path / "steady", small_network(40)), lambda line: None)
    assert more.measured
    for row in hwprune.load_profile(tmp_path / "steady").table or ():
        product = row.operator.in_channels * row.operator.out_channels
        assert row.undisturbed_us == pytest.approx(product, rel=1e-3)


def test_a_build_that_broke_off_in_its_second_pass_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = Machine(monkeypatch)
    build_profile(request(tmp_path / "once"), lambda line: None)
    twice = replace(request(tmp_path / "mine"), passes=2)
    interrupted = Machine(monkeypatch, breaks_after=len(once.measured))
    with pytest.raises(KeyboardInterrupt):
        build_profile(twice, lambda line: None)
    assert sorted(map(str, interrupted.measured)) == sorted(map(str, once.measured))
    rest = Machine(monkeypatch)
    assert build_profile(twice, lambda line: None).provenance.passes == 2
    assert sorted(map(str, rest.measured)) == sorted(map(str, once.measured))


class Unpriced(nn.Module):
    """Two operators that no table prices, behind one that does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.sin(torch.atan(self.conv(images)))


def test_all_operators_that_cannot_be_measured_are_named_before_any_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)
    with pytest.raises(MissingRowError) as caught:
        build_profile(request(tmp_path / "mine", Unpriced()), lambda line: None)
    assert {"sin", "atan"} <= set(re.findall(r"\w+", caught.value.what))
    assert "cannot be measured in onnxruntime" in str(caught.value)
    assert "expected some of add, average_pool" in str(caught.value)
    assert machine.measured == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "mnn", "precision": "int8"}, "mnn does not run int8"),
        ({"kind": "ncnn", "batch": 2}, "ncnn runs one image at a time"),
    ],
)
def test_a_build_that_cannot_end_leaves_nothing(
    change: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(REGISTRY[str(change["kind"])][2])
    Machine(monkeypatch)
    asked = request(tmp_path / "mine")
    runtime = asked.template.runtime.model_copy(update={**change, "provider": ""})
    impossible = replace(asked, template=asked.template.model_copy(update={"runtime": runtime}))
    with pytest.raises(RuntimeUnavailableError, match=message):
        build_profile(impossible, lambda line: None)
    assert list(tmp_path.iterdir()) == []  # the corrected command would be refused by an unfinished build


def test_a_profile_is_extended_and_keeps_its_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch)
    out = tmp_path / "mine"
    before = build_profile(request(out), lambda line: None)
    again, said = Machine(monkeypatch), list[str]()
    build_profile(request(out), said.append)
    assert again.measured == []
    assert "covers these networks already" in said[0]

    wider = Machine(monkeypatch)
    build_profile(request(out, small_network(40)), lambda line: None)
    after = hwprune.load_profile(out)
    assert wider.measured
    assert after.latency == before.latency
    assert set(before.table or ()) < set(after.table or ())
    assert after.provenance.command == "hwprune profile build && hwprune profile build"

    Machine(monkeypatch, breaks_after=0)
    with pytest.raises(KeyboardInterrupt):
        build_profile(request(out, anew=True), lambda line: None)
    anew = Machine(monkeypatch)
    replaced = build_profile(request(out), lambda line: None)  # which goes on with the one of --anew
    assert anew.measured
    assert set(replaced.table or ()) == set(before.table or ())


def test_nothing_is_added_to_the_profile_of_another_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch)
    out = tmp_path / "mine"
    build_profile(request(out), lambda line: None)
    file = out / "profile.toml"
    file.write_text(file.read_text().replace("threads = 1", "threads = 2"))
    with pytest.raises(ProfileError, match="another device") as caught:
        build_profile(request(out), lambda line: None)
    assert "threads 1" in str(caught.value)
    assert "threads 2" in str(caught.value)
    assert "--anew" in str(caught.value)


class Grouped(nn.Sequential):
    """A convolution in four groups, of which pruning may leave one input for each."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, groups=4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 4),
        )


def built_with_its_own_samples(out: Path, network: Network) -> DeviceProfile:
    """A profile of a network, calibrated with narrower versions of it."""

    def samples(local: DeviceProfile) -> dict[str, tuple[nn.Module, torch.Tensor]]:
        drawn = at_random_widths({"network": network}, local, 12, 0)
        return {name: (each.model, each.example) for name, each in drawn}

    return build_profile(replace(request(out, network.model), samples=samples), lambda line: None)


@pytest.mark.parametrize("step", [1, 4, 8, 16])
def test_what_is_left_of_a_convolution_in_groups_has_a_price(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch)
    monkeypatch.setattr(workbench, "find_steps", lambda probe, spec: Steps(align=step))
    network, images = Network(Grouped(), torch.zeros(2, 1, 8, 8)), torch.zeros(2, 1, 8, 8)
    built = built_with_its_own_samples(tmp_path / "device", network)
    widths = hwprune.width_predictor(network.model, built, images)
    narrowest = [[1] * len(widths.names)]
    assert float(widths.latency_us(narrowest)[0]) > 0
    table = built.table
    assert table is not None
    grouped = Operator("conv", 16, 32, 8, 8, 3, 3, padding=1, groups=4)
    steps = built.steps_for(grouped)
    for outputs in range(4, 33, 4):
        left = replace(grouped, in_channels=4, out_channels=outputs)
        assert left.depthwise
        price = table.latency_us(left, built.steps_for(left), built.grouped_steps_for(left))
        if outputs > 4:  # one output for each input may have rows of its own
            prices = table.latencies_us(grouped, np.array([4]), np.array([outputs]), steps)
            assert price == pytest.approx(float(prices[0]))


def test_a_network_of_which_nothing_can_be_pruned_is_priced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch)
    network = Network(nn.Conv2d(1, 8, 3), torch.zeros(2, 1, 8, 8))
    built = built_with_its_own_samples(tmp_path / "device", network)
    assert hwprune.predict(network.model, built, network.example).total_us == pytest.approx(50, rel=0.01)


def test_more_threads_than_cores_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)
    wanted = request(tmp_path / "device")
    runtime = wanted.template.runtime.model_copy(update={"threads": 9999})
    template = wanted.template.model_copy(update={"runtime": runtime})
    with pytest.raises(InputError, match="fewer cores"):
        build_profile(replace(wanted, template=template), lambda line: None)
    assert not machine.measured
    assert not list(tmp_path.iterdir())


def test_what_two_networks_share_keeps_the_row_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)

    def by_bytes(
        operators: Sequence[Operator], spec: RuntimeSpec, *_arguments: object, working_set: int
    ) -> tuple[Row, ...]:
        machine.measured += operators
        return tuple(Row(operator, float(working_set)) for operator in operators)

    monkeypatch.setattr(workbench, "measure_operators", by_bytes)
    alone = build_profile(request(tmp_path / "alone"), lambda line: None).table
    asked = request(tmp_path / "both")
    images = torch.zeros(2, 1, 8, 8)
    networks = {**asked.networks, "wider": (small_network(64), images)}
    both = build_profile(replace(asked, networks=networks), lambda line: None).table
    assert alone is not None
    assert both is not None
    assert set(alone.rows) < set(both.rows)
    added = build_profile(replace(asked, networks=networks, out=tmp_path / "alone"), lambda line: None).table
    assert added is not None
    assert set(added.rows) == set(both.rows)
