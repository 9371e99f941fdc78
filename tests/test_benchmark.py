"""The benchmark against peers: how it lands on a latency, resumes and reports."""

import dataclasses
import importlib
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from hwprune.errors import HwpruneError
from hwprune.runtime.timing import Timing

FOLDER = Path(__file__).parent.parent / "tools" / "benchmark"
MODULES = (
    "ablate",
    "ablation_page",
    "contenders",
    "cuts",
    "environments",
    "journal",
    "latency",
    "page",
    "picture",
    "revision",
    "rows",
    "task",
    "worker",
)


@pytest.fixture
def tools(monkeypatch):
    """Modules of the benchmark, by name, imported as the command imports them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    modules = {name: importlib.import_module(name) for name in MODULES}
    spec = importlib.util.spec_from_file_location("benchmark_main", FOLDER / "__main__.py")
    modules["main"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modules["main"])
    yield modules
    for name in MODULES:
        sys.modules.pop(name, None)


class Fractions:
    """A stopwatch to which a network that keeps a fraction takes ``0.1 + 0.9 * fraction`` of the time."""

    @staticmethod
    def speedup(network):
        return 1 / (0.1 + 0.9 * network.weight.item())


def of_fraction(fraction):
    network = nn.Linear(1, 1)
    nn.init.constant_(network.weight, fraction)
    return network


def small_task(tools, left=1):
    return tools["task"].Task("lenet5", 1.0, 64, 2, left, 32, 0.05, "x86-avx2-ort")


def outcome_of(tools, run):
    return tools["journal"].Outcome(
        0.9 - 0.01 * run.speedup + 0.001 * run.seed, 5.0, 2, 100, 2000, tries=3, groups=7
    )


@pytest.mark.parametrize("target", [1.5, 2.0, 3.0, 5.0])
def test_the_search_lands_on_the_target_and_never_below(tools, target):
    landed = tools["latency"].land(of_fraction, Fractions, target)
    assert target <= Fractions.speedup(landed.network) <= target * 1.03
    assert landed.network.weight.item() == pytest.approx(landed.fraction)


def test_the_search_counts_what_it_tries(tools):
    tried = []
    landed = tools["latency"].land(
        lambda fraction: tried.append(fraction) or of_fraction(fraction), Fractions, 2
    )
    assert landed.tries == len(tried)
    assert landed.fraction == tried[-1]


def test_the_search_ends_where_nothing_lands(tools):
    tried = []

    def build(fraction):  # nothing between 1.1 and 5.3 times
        tried.append(fraction)
        return of_fraction(0.9 if fraction > 0.55 else 0.1)

    landed = tools["latency"].land(build, Fractions, 2.0)
    assert landed.tries == len(tried) == len(set(tried)) < 13
    assert 0.545 < landed.fraction <= 0.55


def test_the_search_finds_what_is_fast_between_slower_ones(tools):
    def build(fraction):  # a layer is left whole where it would be cut to nothing
        return of_fraction(fraction if fraction >= 0.35 else 0.9)

    landed = tools["latency"].land(build, Fractions, 2.1)
    assert 2.1 <= Fractions.speedup(landed.network) <= 2.1 * 1.03


@pytest.mark.parametrize(("first", "expected", "timed"), [(2.01, 2.0, 2), (2.03, 2.03, 1), (2.07, 2.03, 2)])
def test_only_what_could_be_either_side_of_a_limit_is_timed_again(tools, first, expected, timed):
    readings = [first, 2 * expected - first]

    class Readings:
        @staticmethod
        def speedup(_network):
            return readings.pop(0)

    assert tools["latency"].confirmed_speedup(None, Readings, 2.0) == pytest.approx(expected)
    assert len(readings) == 2 - timed


def test_a_target_out_of_reach_is_an_error(tools):
    with pytest.raises(HwpruneError, match=r"12 times faster: got at most 8\.47 times"):
        tools["latency"].land(of_fraction, Fractions, 12.0)


def test_uniform_widths_are_in_steps_and_never_empty(tools):
    network = tools["task"].make_model("vgg16", in_channels=1, image_size=28, classes=10, seed=0)
    axes = tuple(tools["task"].find_axes(network, torch.zeros(2, 1, 28, 28)))
    steps = {axis.name: 8 for axis in axes}
    for fraction in (0.001, 0.3, 1.0):
        widths = tools["task"].uniform(axes, fraction, steps)
        assert all(width % 8 == 0 and width >= 8 for width in widths.values())
        assert len(widths) == 13
    plain = tools["task"].uniform(axes, 0.3)
    assert {plain[axis.name] for axis in axes if axis.width == 64} == {19}


def test_uniform_widths_grow_by_single_steps(tools):
    network = tools["task"].make_model("vgg16", in_channels=1, image_size=28, classes=10, seed=0)
    axes = tuple(tools["task"].find_axes(network, torch.zeros(2, 1, 28, 28)))
    free = {axis.name: axis.width for axis in axes if axis.pinned is None}
    total = sum(free.values()) // 8
    for count in range(100, total + 1, 3):
        widths = tools["task"].uniform(axes, count / total, {axis.name: 8 for axis in axes})
        assert sum(widths.values()) == 8 * count
        assert all(abs(widths[name] - count / total * width) <= 8 for name, width in free.items())


@pytest.fixture
def peer(tools, monkeypatch):
    """The module of the contender that has an environment of its own; skipped where that is not this one."""
    pytest.importorskip("torch_pruning", reason="needs the extra zoo")
    monkeypatch.delitem(sys.modules, "peer_torch_pruning", raising=False)
    return importlib.import_module("peer_torch_pruning")


def test_a_peer_keeps_a_step_of_every_layer_however_much_it_cuts(peer):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 64, 3), nn.Flatten(), nn.Linear(1024, 4)
    )
    with torch.no_grad():
        network[0].weight.mul_(0.001)  # all of it is weaker than anything behind it
    slim = peer.cut(network, torch.zeros(2, 1, 8, 8), "magnitude", 0.9, {16: 4, 64: 8})
    assert (slim[0].out_channels, slim[2].out_channels) == (4, 8)


@pytest.mark.parametrize(
    ("removed", "channels", "kept"), [(12, 16, 8), (1, 20, 16), (16, 16, 8), (3, 6, 6), (0, 16, 16)]
)
def test_a_peer_removes_whole_steps(peer, removed, channels, kept):
    assert channels - peer.removed_in_steps(removed, channels, 8) == kept


@pytest.mark.fashion_mnist
def test_a_thinner_network_has_the_initialisation_of_its_own_width(tools):
    task = tools["task"].Task("vgg16", 0.25, 64, 1, 0, 32, 0.1, "x86-avx2-ort")
    weight = task.untrained(3).features[3].weight.detach()
    assert weight.shape[:2] == (16, 16)
    assert float(weight.std()) == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.1)


@pytest.mark.fashion_mnist
def test_the_strongest_channels_stay(tools):
    task = small_task(tools)
    network = task.untrained(0)
    job = tools["task"].Job(task, 0, 2.0, network, Fractions())
    with torch.no_grad():
        network.conv1.weight[::2] *= 10
    kept = tools["cuts"].strongest(job, network, {"conv1": 10, "conv2": 50, "fc1": 500})
    np.testing.assert_array_equal(kept["conv1"], np.arange(20) % 2 == 0)


@pytest.mark.fashion_mnist
def test_a_training_goes_on_where_it_was_cut(tools):
    task = small_task(tools, left=0)
    job = tools["task"].Job(task, 0, 2.0, task.untrained(0), Fractions())
    whole = job.trainer(job.copy_of_dense())
    tools["task"].run_epochs(whole)
    before = job.trainer(job.copy_of_dense())
    tools["task"].run_epochs(before, 1)
    after = tools["cuts"].continued(job, before, before.model)
    after.optimizer.load_state_dict(before.optimizer.state_dict())
    tools["task"].run_epochs(after)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(after.model.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.fashion_mnist
def test_uniform_widths_are_fitted_as_hwprune_fits(tools, monkeypatch):
    task = small_task(tools)
    job = tools["task"].Job(task, 0, 2.0, task.untrained(0), Fractions())
    monkeypatch.setattr(tools["task"].Job, "aligns", {axis.name: 1 for axis in job.axes})
    landed = tools["latency"].Landed
    monkeypatch.setattr(tools["cuts"], "land", lambda build, *_rest: landed(build(0.5), 0.5, 1))
    cut = tools["cuts"].uniform_magnitude(job, job.dense).network.eval()
    fitted = tools["cuts"].uniform_fitted(job, job.dense).network.eval()
    images = job.dataset.test_images[:200]
    with torch.no_grad():
        wanted = job.dense.eval()(images)
        errors = [float((network(images) - wanted).norm()) for network in (cut, fitted)]
    assert [parameter.shape for parameter in fitted.parameters()] == [each.shape for each in cut.parameters()]
    assert errors[1] < 0.7 * errors[0]


def test_who_learns_from_the_dense_network_needs_a_trained_one(tools):
    entrants = tools["main"].entrants
    everybody = entrants(small_task(tools, left=2), [])
    assert everybody == list(tools["contenders"].CONTENDERS)
    from_scratch = entrants(small_task(tools, left=0), [])
    assert not [name for name in from_scratch if "distil" in name]
    assert set(everybody) - set(entrants(small_task(tools, left=1), [])) == {"tp-bn-scale", "tp-group-norm"}
    for left, name in ((0, "hwprune-distil"), (1, "tp-bn-scale")):
        options = ["--out", "page.md", "--left", str(left), "--contender", name]
        result = CliRunner().invoke(tools["main"].main, options)
        assert result.exit_code == 2
        assert f"{name} cannot take part: it " in result.output


@pytest.fixture
def simulated(tools, monkeypatch, tmp_path):
    """Invokes the benchmark; seed 1 fails where it is told to, and no network is slower than asked for.

    Attributes on the function: ``done``, all runs made, and ``failing``, contenders that fail with seed 1.
    """
    main, journal = tools["main"], tools["journal"]

    def do(run, _folder):
        invoke.done.append(run)
        failed = run.contender in invoke.failing and run.seed == 1
        return journal.Outcome.failed("out of memory") if failed else outcome_of(tools, run)

    def time_all(runs, _folder):
        return {run: Timing(1010 / run.speedup, 900.0, 1100.0, 9, {}, 1000 / run.speedup) for run in runs}

    def invoke(*options):
        everything = ["--out", str(tmp_path / "page.md"), "--work", str(tmp_path / "work"), *options]
        result = CliRunner().invoke(main.main, everything)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result, tmp_path / "page.md"

    invoke.done, invoke.failing = [], {"narrow"}
    monkeypatch.setattr(main, "do", do)
    monkeypatch.setattr(main, "time_all", time_all)
    return invoke


TWO = ("--speedup", "2", "--contender", "hwprune", "--contender", "narrow")


def test_finished_runs_are_kept_and_failures_told(tools, simulated, tmp_path):
    for seeds in (1, 2, 2):
        result, out = simulated(*TWO, "--seeds", str(seeds))
        assert result.exit_code == 0, result.output
    done = simulated.done
    assert len(done) == len(set(done)) == 6
    page = out.read_text()
    start = "| hwprune | 2 of 2 | 88.05 | 0.07 | 0.05 | - | +1.00 | 500 | 2.00 to 2.00 | 0 | 2.0 | 3.0 | 5 "
    assert f"{start}| 7 | 100 | 2,000 |" in page
    assert "| narrow | 1 of 2 | 88.00 | - | - | +0.00 (-) | +1.00 |" in page
    assert "| narrow | 2 | 0 | 88.00 | 505.0 (900.0 to 1100.0) | 9 | 500.0 | 2.00 | 7 |" in page
    assert "- narrow, 2x, seed 1: out of memory" in page
    assert out.with_suffix(".svg").read_text().count("<path") > 10
    assert tools["journal"].read(tmp_path / "work" / "runs.jsonl").keys() == set(done)


def test_what_was_not_asked_for_this_time_is_told_all_the_same(simulated):
    simulated(*TWO, "--seeds", "2")
    _, out = simulated("--speedup", "2", "--contender", "dense-longer", "--seeds", "2")
    page = out.read_text()
    assert "- narrow, 2x, seed 1: out of memory" in page
    assert "- hwprune, 2x, seed 1: 88.10%" in page
    assert "| dense-longer | 2 of 2 | 89.05 |" in page.split("## Every network")[0].split("## 1")[0]


def test_a_regulariser_is_tuned_on_a_seed_of_its_own(simulated):
    sparse = ("--speedup", "2", "--contender", "tp-bn-scale", "--seeds", "1")
    for strength in ("1e-3", "1e-2"):
        simulated(*sparse, "--first-seed", "100", "--regularisation", strength)
    _, out = simulated(*sparse, "--regularisation", "1e-2")
    told = [(run.contender, run.seed, run.regularisation) for run in simulated.done]
    assert told == [
        ("dense", 100, 0.0),
        ("tp-bn-scale", 100, 0.001),
        ("tp-bn-scale", 100, 0.01),
        ("dense", 0, 0.0),
        ("tp-bn-scale", 0, 0.01),
    ]
    assert len({run.key for run in simulated.done}) == 5
    assert "- tp-bn-scale, 2x, seed 100, regularisation 0.001: 98.00%" in out.read_text()


def test_the_strength_of_a_regulariser_counts(peer):
    gradients = []
    for strength in (0.0, 1e-4, 1e-3):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 4))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        wrapped = peer.regularised(network, torch.zeros(2, 1, 8, 8), "bn-scale", strength)(optimizer)
        network(torch.ones(2, 1, 8, 8)).sum().backward()
        network[1].weight.grad.zero_()
        wrapped.step()
        gradients.append(float(network[1].weight.grad.abs().max()))
    assert gradients[0] == gradients[1] > 0
    assert gradients[2] == pytest.approx(10 * gradients[1])


def test_failed_runs_are_done_again_when_that_is_asked_for(simulated):
    simulated(*TWO, "--seeds", "2")
    simulated.failing, before = set(), len(simulated.done)
    _, out = simulated(*TWO, "--seeds", "2", "--retry-failed")
    assert [(run.contender, run.seed) for run in simulated.done[before:]] == [("narrow", 1)]
    assert "## Failed" not in out.read_text()


@pytest.mark.parametrize(
    ("failing", "told"),
    [({"dense"}, "no dense network of this seed"), ({"dense", "hwprune", "narrow"}, "out of memory")],
)
def test_a_dense_network_that_fails_takes_its_seed_along(simulated, failing, told):
    simulated.failing = failing
    result, out = simulated(*TWO, "--seeds", "2")
    assert result.exit_code == 0, result.output
    assert [run.contender for run in simulated.done if run.seed == 1] == ["dense"]
    assert told in out.read_text()
    assert "| hwprune | 1 of 2 |" in out.read_text()


def test_a_page_of_failures_only(simulated, tools, monkeypatch):
    monkeypatch.setattr(tools["main"], "do", lambda *_args: tools["journal"].Outcome.failed("no memory"))
    result, out = simulated(*TWO, "--seeds", "1")
    assert result.exit_code == 0, result.output
    assert "- dense, 1x, seed 0: no memory" in out.read_text()


def test_a_page_of_nothing_is_refused(simulated):
    result, out = simulated(*TWO, "--page-only")
    assert result.exit_code == 1
    assert "no run is finished" in result.output
    assert not out.exists()


def test_runs_of_other_code_are_made_again_or_taken_on_request(tools, simulated, monkeypatch):
    simulated(*TWO, "--seeds", "1")
    monkeypatch.setattr(tools["main"], "fingerprint", lambda: "other code")
    result, _ = simulated(*TWO, "--seeds", "1", "--keep-old")
    assert len(simulated.done) == 3
    result, _ = simulated(*TWO, "--seeds", "1")
    assert "3 finished runs are of other code or versions and do not count" in result.output
    assert len(simulated.done) == 6


def test_half_a_line_of_a_killed_run_is_forgotten(tools, tmp_path):
    journal, path = tools["journal"], tmp_path / "runs.jsonl"
    runs = [journal.Run(small_task(tools), "dense", seed, 1.0) for seed in range(3)]
    for run in runs[:2]:
        journal.note(path, run, outcome_of(tools, run))
    path.write_text(path.read_text()[:-20])
    assert list(journal.read(path)) == runs[:1]
    journal.note(path, runs[2], outcome_of(tools, runs[2]))
    assert list(journal.read(path)) == [runs[0], runs[2]]


def test_the_code_is_known_by_what_runs_depend_on(tools, monkeypatch, tmp_path):
    revision = tools["revision"]
    for name in ("task.py", "page.py"):
        (tmp_path / name).write_text("pass\n")
    monkeypatch.setattr(revision, "__file__", str(tmp_path / "revision.py"))
    before = revision.fingerprint()
    (tmp_path / "page.py").write_text("# another page\n")
    assert revision.fingerprint() == before
    (tmp_path / "task.py").write_text("# another task\n")
    changed = revision.fingerprint()
    assert changed != before
    monkeypatch.setattr(revision.code_fingerprint, "versions", lambda: {"torch": "0.1"})
    assert revision.fingerprint() not in (before, changed)


def test_a_contender_whose_packages_cannot_be_installed_fails_alone(tools, monkeypatch, tmp_path):
    def refuse(*_args):
        raise click.ClickException("pip cannot install torch-pruning")

    monkeypatch.setattr(tools["main"], "python_with", refuse)
    run = tools["journal"].Run(small_task(tools), "tp-magnitude", 0, 2.0)
    assert tools["main"].do(run, tmp_path).error == "pip cannot install torch-pruning"


@pytest.mark.fashion_mnist
def test_a_worker_trains_scores_and_exports(tools, monkeypatch, tmp_path):
    monkeypatch.setattr(
        tools["task"].ThisMachine, "localize", lambda _self, profile, *_args, **_options: profile
    )
    run = tools["journal"].Run(small_task(tools), "dense", 0, 1.0)
    outcome = tools["worker"].work(run, tmp_path)
    assert (outcome.channels, outcome.trainings) == (70, 1)
    assert outcome.groups == 3 + 7 + 500  # 20 and 50 channels in steps of 8, and 500 single ones
    assert 0.05 < outcome.accuracy < 0.9
    assert (tmp_path / f"{run.key}.onnx").is_file()
    job = tools["worker"].job_of(tools["journal"].Run(small_task(tools), "hwprune", 0, 2.0), tmp_path)
    assert tools["task"].score(job.dense, job.dataset) == outcome.accuracy


def test_every_part_of_the_ablation_changes_one_thing(tools):
    ablate = tools["ablate"]
    for name, part in ablate.PARTS.items():
        origin = ablate.PARTS[ablate.WHOLE if part.trained else "scratch"]
        changed = [
            field.name
            for field in dataclasses.fields(part)
            if field.name != "what" and getattr(part, field.name) != getattr(origin, field.name)
        ]
        allowed = {"bare": ["fit", "distil"], "plain-quarter": ["pull", "penalty"]}.get(name)
        assert changed == allowed or (allowed is None and len(changed) <= 1), name


@pytest.mark.parametrize(
    ("name", "settled"), [("whole", 1), ("pull-quarter", 25), ("pull-half", 50), ("plain-quarter", 25)]
)
def test_a_part_settles_when_it_says(tools, name, settled):
    assert tools["ablate"].PARTS[name].schedule(100).settle_step == settled


def test_from_random_weights_the_schedule_is_the_default(tools):
    assert tools["ablate"].PARTS["scratch"].schedule(100) is None


def test_the_ablation_compares_the_same_seeds(tools):
    journal, page = tools["journal"], tools["ablation_page"]
    scores = {("whole", 0): 0.90, ("whole", 1): 0.80, ("bare", 1): 0.79, ("dense", 0): 0.95}
    outcomes = {
        journal.Run(small_task(tools), name, seed, 1.0 if name == "dense" else 2.0): journal.Outcome(
            accuracy, 5.0, 1, 100, 2000
        )
        for (name, seed), accuracy in scores.items()
    }
    lines = page.as_markdown(outcomes, "whole", {"whole": "all of it", "bare": "nothing"}).splitlines()
    table = [line for line in lines if line.startswith(("| whole", "| bare"))]
    assert table == [
        "| whole | 2 | 85.00 (7.07) | - | 5 | 100 | 2,000 |",
        "| bare | 1 | 79.00 (-) | -1.00 (-) | 5 | 100 | 2,000 |",
    ]
    assert "- `bare`: nothing" in lines


@pytest.mark.slow
@pytest.mark.fashion_mnist
def test_the_ablation_runs_and_goes_on(tools, tmp_path):
    arguments = [
        "--out",
        "page.md",
        "--work",
        str(tmp_path / "work"),
        "--network",
        "lenet5",
        "--images",
        "64",
    ]
    arguments += ["--epochs", "1", "--left", "1", "--seeds", "1", "--speedup", "2", "--jobs", "1"]
    arguments[1] = str(tmp_path / "page.md")
    command = tools["ablate"].main
    for parts in (["count"], ["count", "pull-half"]):
        result = CliRunner().invoke(
            command, [*arguments, *(word for part in parts for word in ("--part", part))]
        )
        assert result.exit_code == 0, result.output
        assert "dense" not in result.output or parts == ["count"]
    page = (tmp_path / "page.md").read_text()
    assert all(f"| {part} | 1 |" in page for part in parts)
