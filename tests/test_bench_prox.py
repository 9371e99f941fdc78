"""What the benchmark of one proximal step says of the figures that are wanted."""

import pytest


@pytest.fixture
def bench(load_tool):
    return load_tool("bench_prox")


def seconds(sgd, warm, cold):
    return {"SGD": [sgd], "warm": [warm], "cold": [cold], "sorted": [1.0]}


def test_the_page_says_which_wanted_figures_are_met(bench):
    results = {
        100: seconds(1e-6, 1e-3, 1e-3),
        100_000: seconds(1e-4, 4e-4, 1e-3),
        1_000_000: seconds(1e-3, 3e-3, 2e-2),
    }
    assert bench.as_markdown(results, 1, "not asked for", [])[-4:] == [
        "- warm / SGD at 1,000,000 groups: 3, at most 4 wanted: met",
        "- cold / SGD at 1,000,000 groups: 20, at most 12 wanted: missed",
        "- warm, greatest over least time per group from 100,000 on: 1.33, at most 1.5 wanted: met",
        "- cold, greatest over least time per group from 100,000 on: 2, at most 1.5 wanted: missed",
    ]


def test_flatness_needs_two_sizes(bench):
    page = bench.as_markdown({100: seconds(1e-6, 1e-3, 1e-3)}, 1, "not asked for", [])
    assert page[-1].endswith("from 100,000 on: not measured, at most 1.5 wanted")


def test_on_a_gpu_a_step_is_measured_in_copies_of_the_weights(bench):
    results = {100_000: {**seconds(1e-4, 4e-4, 1e-3), "copy": [2e-4]}}
    page = bench.as_markdown(results, 1, "not asked for", [])
    assert "- warm / copy (200 us) at 100,000 groups: 2, at most 3 wanted: met" in page


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_everybody_is_timed_on_the_device_that_is_asked_for(bench, device):
    by_size, differences = bench.time_sizes([1000, 100], 2, None, device)
    assert list(by_size) == [100, 1000]
    assert differences == []
    for measured in by_size.values():
        assert set(measured) == {"SGD", "cold", "warm", "sorted"} | ({"copy"} if device == "cuda" else set())
        assert all(len(values) == 2 and min(values) > 0 for values in measured.values())


class Slow:
    """A peer that takes as long as it is told for each size, and agrees with the envelope."""

    def __init__(self, bench, seconds):
        self._bench, self._seconds, self.asked = bench, seconds, []

    def set_problem(self, norms):
        self._norms = norms

    def seconds(self, budget, strength):
        groups = len(self._norms)
        self.asked.append(groups)
        envelope = self._bench.GroupEnvelope(budget, debias=False)
        factors = envelope.prox_factors(self._bench.torch.from_numpy(self._norms), strength)
        self._point = factors.numpy() * self._norms
        return self._seconds[groups]

    def point(self):
        return self._point


def test_a_peer_is_not_asked_again_for_what_took_too_long_nor_for_more(bench):
    peer = Slow(bench, {100: 0.6, 200: 21.0, 300: 1.0})
    by_size, differences = bench.time_sizes([100, 200, 300], 3, peer)
    assert peer.asked == [100, 200, 100, 100]
    assert [len(by_size[groups]["ModOpt"]) for groups in (100, 200, 300)] == [3, 1, 0]
    assert len(differences) == 2
    assert max(differences) < 1e-12
    rows = [line for line in bench.as_markdown(by_size, 3, "given", differences) if line.startswith("| 300 ")]
    assert rows[0].endswith("| not run |")


def test_short_runs_follow_an_uncounted_one(bench):
    peer = Slow(bench, {100: 0.1})
    bench.time_sizes([100], 2, peer)
    assert peer.asked == [100] * 4
