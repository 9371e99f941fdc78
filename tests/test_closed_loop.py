"""The closed loop on a device that is slower than predicted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hwprune
from hwprune import kept_measurements
from hwprune.closed_loop import Turn, forget_disturbed, settle_on_device
from hwprune.errors import TargetError
from hwprune.groups.costs import LatencyBudget, Widths
from hwprune.runtime.patience import Patience
from hwprune.runtime.timing import Timing

DENSE = np.array([64])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty for every test."""
    monkeypatch.setattr(kept_measurements, "user_cache_path", lambda _name: tmp_path)
    return tmp_path / "measurements"


def timing(latency_us: float) -> Timing:
    return Timing(latency_us, latency_us, latency_us, 9)


class Device:
    """Takes a time of its own for every network."""

    def __init__(self, offset_us: float) -> None:
        self._offset_us = offset_us
        self.patience = Patience(pytest.fail)
        self.profile = hwprune.load_profile("x86-avx2-ort")

    def kept(self, widths: Widths) -> dict[str, Any]:
        return {"axis": np.arange(DENSE[0]) < widths[0]}

    def measure(self, networks: dict[str, Any]) -> dict[str, Timing]:
        return {
            name: timing(self._offset_us + float(kept["axis"].sum() if kept else DENSE[0]))
            for name, kept in networks.items()
        }


def choose(budget: LatencyBudget) -> Widths:
    """The widest multiple of 8 within a budget of a microsecond per channel."""
    width = int(budget.limit // 8) * 8
    if width < 8:
        raise TargetError("out of reach")
    return np.array([width])


def settle(offset_us: float, first_limit: float) -> tuple[Widths, float, Any]:
    budget = LatencyBudget(lambda widths: np.asarray(widths).sum(-1).astype(float), first_limit)
    device: Any = Device(offset_us)
    return settle_on_device(device, (), budget, lambda dense_us: dense_us / 2, choose, DENSE)


def _file_with(value: str) -> str:
    """A file in the cache whose medians are of another kind."""
    timing = f'{{"median_us": {value}, "p10_us": 1.0, "p90_us": 1.0, "runs": 9, "undisturbed_us": 1.0}}'
    return f'{{"timings": {{"dense": {timing}, "slim": {timing}}}}}'


def test_a_prediction_that_is_too_low_is_corrected() -> None:
    widths, limit, turns = settle(offset_us=8.0, first_limit=32.0)
    assert len(turns) > 1
    assert turns[-1].measured_us <= turns[-1].allowed_us
    assert widths[0] == 24
    assert limit >= 24


def test_a_network_that_only_just_misses_the_target_is_corrected() -> None:
    widths, _, turns = settle(offset_us=0.2, first_limit=32.0)
    assert turns[0].measured_us == pytest.approx(32.2)
    assert turns[0].allowed_us == pytest.approx(32.1)
    assert widths[0] == 24


def test_where_there_is_nothing_between_the_slower_network_that_is_fast_enough_is_taken() -> None:
    """Its neighbour would waste a quarter of what is allowed, and is not measured twice."""
    widths, _, turns = settle(offset_us=-0.2, first_limit=32.0)
    assert [round(turn.measured_us) for turn in turns] == [32, 24]
    assert widths[0] == 32


class Uneven(Device):
    """Takes another part of the predicted time for every network, and notes what it measures."""

    def __init__(self, parts: dict[int, float]) -> None:
        super().__init__(0.0)
        self._parts, self.widths = parts, list[int]()

    def measure(self, networks: dict[str, Any]) -> dict[str, Timing]:
        self.widths.append(int(networks["slim"]["axis"].sum()))
        return {
            "dense": timing(float(DENSE[0])),
            "slim": timing(self.widths[-1] * self._parts[self.widths[-1]]),
        }


def settle_unevenly(parts: dict[int, float], first_limit: float) -> tuple[int, list[int]]:
    """The width chosen for half of 64 us among ``parts``, and those that were measured."""

    def widest(budget: LatencyBudget) -> Widths:
        return np.array([max(width for width in parts if width <= budget.limit)])

    budget = LatencyBudget(lambda widths: np.asarray(widths).sum(-1).astype(float), first_limit)
    device: Any = Uneven(parts)
    widths, _, _ = settle_on_device(device, (), budget, lambda dense_us: dense_us / 2, widest, DENSE)
    return int(widths[0]), device.widths


def test_a_network_faster_than_asked_is_corrected_although_the_next_limit_gives_the_same() -> None:
    """A step of 2 us is more than 2 % of the limit."""
    parts = dict.fromkeys(range(2, 64, 2), 0.88)
    assert settle_unevenly(parts, 31.0) == (34, [30, 34])


def test_a_correction_that_passes_by_is_followed_by_what_lies_between() -> None:
    """The next network is slower than the first promised, and promises less than the first took."""
    parts = {width: 0.8 if width < 30 else 1.2 if width > 33 else 0.97 for width in range(2, 64)}
    assert settle_unevenly(parts, 29.0) == (32, [29, 36, 32])


def test_a_prediction_wrong_by_another_factor_for_narrow_networks_is_corrected_between_the_two() -> None:
    """By the first network's factor alone the second would take twice the time that is allowed."""
    parts = {width: width / 64 for width in range(2, 65)}
    assert settle_unevenly(parts, 31.0) == (44, [31, 44])


def test_where_nothing_lies_between_no_turn_is_spent() -> None:
    assert settle_unevenly({20: 1.0, 40: 1.0}, 31.0) == (20, [20])
    assert settle_unevenly({24: 1.0, 32: 1.05}, 32.0) == (24, [32, 24])


def test_a_correction_out_of_reach_leaves_the_last_network_that_was_measured() -> None:
    widths, limit, turns = settle(offset_us=1000.0, first_limit=32.0)
    assert turns
    assert all(turn.measured_us > turn.allowed_us for turn in turns)
    assert limit in {turn.limit_us for turn in turns}
    assert widths[0] == int(limit // 8) * 8


def test_what_lies_between_a_correction_out_of_reach_and_a_network_too_slow_is_measured() -> None:
    def fast_from_16(budget: LatencyBudget) -> Widths:
        if budget.limit < 14:
            raise TargetError("out of reach")
        return np.array([16 if budget.limit < 24 else int(budget.limit // 8) * 8])

    class Steep(Device):
        """Slower than predicted, the more so the wider."""

        def measure(self, networks: Any) -> Any:
            found = super().measure(networks)
            return found | {"slim": timing(16.0 if found["slim"].median_us <= 16 else 100.0)}

    budget = LatencyBudget(lambda widths: np.asarray(widths).sum(-1).astype(float), 32.0)
    device: Any = Steep(0.0)
    widths, _, turns = settle_on_device(
        device, (), budget, lambda dense_us: dense_us / 2, fast_from_16, DENSE
    )
    assert turns[0].measured_us > turns[0].allowed_us
    assert widths[0] == 16


def test_what_a_turn_took_is_known_to_the_turns_after_it_and_to_equal_runs(cache: Path) -> None:
    for _ in range(2):  # measured, and read from the cache
        device: Any = Device(8.0)
        budget = LatencyBudget(lambda widths: np.asarray(widths).sum(-1).astype(float), 32.0)
        settle_on_device(device, (), budget, lambda dense_us: dense_us / 2, choose, DENSE)
        assert device.patience.usual_us == 72.0


def test_a_turn_that_was_disturbed_is_not_kept_for_other_runs(cache: Path) -> None:
    device: Any = Device(8.0)
    device.patience.know(50.0)  # of 72 us that it takes now
    budget = LatencyBudget(lambda widths: np.asarray(widths).sum(-1).astype(float), 32.0)
    _, _, turns = settle_on_device(device, (), budget, lambda dense_us: dense_us / 2, choose, DENSE)
    assert turns
    assert not cache.exists()


def test_a_first_budget_out_of_reach_is_an_error() -> None:
    with pytest.raises(TargetError):
        settle(offset_us=0.0, first_limit=4.0)


def test_an_equal_run_chooses_by_the_measurements_of_the_first(
    cache: Path,
) -> None:
    widths, limit, turns = settle(offset_us=8.0, first_limit=32.0)
    again, same_limit, reused = settle(offset_us=300.0, first_limit=32.0)
    assert again.tolist() == widths.tolist()
    assert same_limit == limit
    assert [turn.measured_us for turn in reused] == [turn.measured_us for turn in turns]
    assert {turn.reused for turn in turns} == {False}
    assert {turn.reused for turn in reused} == {True}
    assert {f"{turn.measurement}.json" for turn in turns} == {path.name for path in cache.iterdir()}


@pytest.mark.parametrize(
    "content",
    [
        '{"timings": {"dense": {"median_us": 3',
        '{"timings": 3}',
        '{"timings": {"dense": {"median_us": 3.0}}}',
        "[" * 100_000,
        *(_file_with(value) for value in ("NaN", "0.0", "-3.0", "Infinity", "null", '"x"')),
    ],
    ids=lambda content: content[-60:][:40],
)
def test_a_measurement_that_cannot_be_read_is_made_again(content: str, cache: Path) -> None:
    _, _, turns = settle(offset_us=8.0, first_limit=32.0)
    for path in cache.iterdir():
        path.write_text(content)
    _, _, again = settle(offset_us=8.0, first_limit=32.0)
    assert again == turns
    _, _, reused = settle(offset_us=8.0, first_limit=32.0)
    assert all(turn.reused for turn in reused)


def test_a_measurement_that_may_not_be_read_is_made_again(cache: Path) -> None:
    _, _, turns = settle(offset_us=8.0, first_limit=32.0)
    for path in cache.iterdir():
        path.unlink()
    for turn in turns:
        (cache / f"{turn.measurement}.json").symlink_to("nowhere")
    _, _, again = settle(offset_us=8.0, first_limit=32.0)
    assert again == turns


def _timings(dense_us: float, median_us: float, undisturbed_us: float) -> dict[str, Timing]:
    slim = Timing(median_us, median_us, median_us, 9, undisturbed_us=undisturbed_us)
    return {"dense": timing(dense_us), "slim": slim}


@pytest.mark.parametrize(
    ("chosen_us", "median_us", "undisturbed_us", "left"),
    [
        (31.0, 31.0, 31.0, 2),  # as when it was chosen
        (31.0, 30.0, 30.0, 2),  # a little faster
        (31.0, 29.0, 31.0, 2),  # in one sense only
        (31.0, 27.0, 27.0, 0),  # it was disturbed when it was chosen
        (31.0, 32.3, 31.0, 0),  # something disturbed one of the two measurements
        (34.0, 34.0, 34.0, 2),  # it missed the target then, too
        (34.0, 38.0, 34.0, 0),
        (34.0, 31.0, 31.0, 0),
    ],
)
def test_turns_that_the_finished_network_does_not_bear_out_are_forgotten(
    chosen_us: float, median_us: float, undisturbed_us: float, left: int, cache: Path
) -> None:
    cache.mkdir()
    turns = [
        Turn(32.0, 32.0, 36.0, 32.0, measurement="first"),
        Turn(28.0, 28.0, chosen_us, 32.0, measurement="second"),
    ]
    for turn in turns:
        (cache / f"{turn.measurement}.json").touch()
    finished = _timings(64.0, median_us, undisturbed_us)
    forget_disturbed(turns, 28.0, finished, lambda dense_us: dense_us / 2)
    assert len(list(cache.iterdir())) == left
