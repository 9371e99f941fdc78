"""``hwprune profile build`` and ``hwprune profile check``."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import hwprune
from hwprune import profile_check
from hwprune.cli import main, profile_build
from hwprune.cli.profile_networks import check_command
from hwprune.device.library import shipped_folder
from hwprune.device.profile import RuntimeSpec
from hwprune.device.profile_text import to_toml
from hwprune.device.rows import Row
from hwprune.device.table import LatencyTable
from hwprune.graph.trace import trace_operators
from hwprune.profile_check import UNALIGNED, NetworkError, by_widths, compare_networks
from hwprune.runtime import steady
from hwprune.runtime.build import BuildRequest
from hwprune.runtime.calibration import CALIBRATION_FILE
from hwprune.sampled_networks import Network, at_random_widths, for_calibration


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def small_network(in_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A profile of the small network, and what it is for."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copy(__file__, folder / "user_networks.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        spec, out = "user_networks:small_network:1x12x12", folder / "profiles" / "mine"
        with pytest.MonkeyPatch.context() as calm:
            # How busy the machine is while tests run is not what is tested.
            for tolerance in ("STEADY", "DISTURBED"):
                calm.setattr(steady, tolerance, float("inf"))
            result = run("profile", "build", "--for", spec, "--out", out)
        assert result.exit_code == 0, result.output
        yield out, spec


def test_a_built_profile_says_what_was_measured(built: tuple[Path, str]) -> None:
    out, _ = built
    profile = hwprune.load_profile(out)
    assert profile.provenance.source == "measured"
    assert profile.provenance.runs > 0
    assert profile.table is not None
    assert all(0 < row.p10_us <= row.median_us <= row.p90_us for row in profile.table)
    assert str(out.parent) not in (out / "profile.toml").read_text() + (out / "latency.csv").read_text()
    assert "reference kernel" in (out / "latency.csv").read_text()
    listed = run("devices", "--profiles", out.parent, "--json")
    assert "mine" in {device["name"] for device in json.loads(listed.stdout)["devices"]}


def test_a_built_profile_is_checked(built: tuple[Path, str], tmp_path: Path) -> None:
    out, spec = built
    page = tmp_path / "errors.md"
    checked = run("profile", "check", out, "--for", spec, "--count", 3, "--json", "--markdown", page)
    assert checked.exit_code == 0, checked.output
    record = json.loads(checked.stdout)
    assert record["networks"] == len(record["errors"]) == 3
    for entry in record["errors"]:
        assert entry["error"] == pytest.approx(entry["predicted_us"] / entry["measured_us"] - 1)
    # On a busy machine no steps may be found, and then no width is off them.
    stepped = any(rule.align > 1 for rule in hwprune.load_profile(out).rules)
    kinds = ["aligned", "aligned", "unaligned" if stepped else "aligned"]
    assert [entry["widths"] for entry in record["errors"]] == kinds
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert {kind: summary["networks"] for kind, summary in record["widths"].items()} == {**counts, "all": 3}
    told = page.read_text()
    assert told.startswith("## mine\n")
    assert f"| aligned | {counts['aligned']} | {100 * record['widths']['aligned']['median']:.1f} % |" in told
    assert all(entry["name"] in told for entry in record["errors"])
    assert f"`hwprune profile check mine --for {spec} --count 3 --seed 0`" in told


def test_a_calibration_is_fitted_again_and_the_rows_stay(
    built: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tolerance in ("STEADY", "DISTURBED"):
        monkeypatch.setattr(steady, tolerance, float("inf"))
    copy = tmp_path / "mine"
    shutil.copytree(built[0], copy)
    file, table = copy / "profile.toml", (copy / "latency.csv").read_bytes()
    file.write_text(re.sub("(?m)^calibration = .*$", "calibration = 9.0", file.read_text()))
    broken = hwprune.load_profile(copy)
    before = (copy / CALIBRATION_FILE).read_text()
    result = run("profile", "calibrate", copy, "--for", built[1])
    assert result.exit_code == 0, result.output
    mended = hwprune.load_profile(copy)
    assert 0.1 < mended.latency.calibration < 9
    assert "calibration 9 -> " in result.stdout
    assert (copy / "latency.csv").read_bytes() == table
    assert mended.provenance.command.startswith(f"{broken.provenance.command} && hwprune")
    assert mended.provenance.date == broken.provenance.date
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (copy / CALIBRATION_FILE).read_text() != before
    with (copy / CALIBRATION_FILE).open(newline="") as lines:
        fitted_to = list(csv.DictReader(lines))
    assert len(fitted_to) == 36
    for row in fitted_to:
        by_fit = mended.latency.correction.latency_us(
            np.array(float(row["sum_us"])), np.array(float(row["weights_mib"]))
        )
        assert float(row["predicted_us"]) == pytest.approx(float(by_fit), abs=0.03)
    errors = [abs(float(row["predicted_us"]) / float(row["measured_us"]) - 1) for row in fitted_to]
    assert np.median(errors) < 0.5


def test_only_a_table_of_this_machine_is_calibrated(built: tuple[Path, str], tmp_path: Path) -> None:
    template = run("profile", "calibrate", shipped_folder() / "any-cpu-ort")
    assert template.exit_code == 1
    assert "template" in template.stderr
    copy = tmp_path / "mine"
    shutil.copytree(built[0], copy)
    file = copy / "profile.toml"
    file.write_text(re.sub("(?m)^model = .*$", 'model = "Another CPU"', file.read_text()))
    before = file.read_text()
    assert run("profile", "calibrate", copy).exit_code == 1
    assert file.read_text() == before


def test_unaligned_widths_are_drawn_off_the_steps() -> None:
    template = hwprune.load_profile("any-cpu-ort")
    rules = tuple(rule.model_copy(update={"align": 16}) for rule in template.rule)
    profile = template.model_copy(update={"rule": rules})
    networks = {"small": Network(small_network(1), torch.zeros(2, 1, 12, 12))}

    def widths(*, aligned: bool) -> list[int]:
        made = at_random_widths(networks, profile, 6, 0, aligned=aligned)
        return [network.model[0].out_channels for _, network in made]

    assert set(widths(aligned=True)) == {16}
    assert any(width % 16 for width in widths(aligned=False))
    again = at_random_widths(networks, profile, 6, 0, aligned=False)
    assert [network.model[0].out_channels for _, network in again] == widths(aligned=False)


def test_a_calibration_sees_wide_networks_besides_those_that_a_check_may_draw() -> None:
    profile = hwprune.load_profile("any-cpu-ort")
    whole = Network(nn.Sequential(nn.Conv2d(1, 10, 3)), torch.zeros(2, 1, 12, 12))
    networks = {"small": Network(small_network(1), torch.zeros(2, 1, 12, 12)), "whole": whole}
    drawn = for_calibration(networks, profile)
    wide = [network for name, network in drawn.items() if name.endswith(" wide")]
    assert drawn["whole"] is whole
    assert len(wide) > 5
    assert len(drawn) > 2 * len(wide)
    assert all(network.model[0].out_channels >= 0.7 * 16 for network in wide)
    assert any(network.model[0].out_channels < 0.7 * 16 for network in drawn.values())


def test_a_network_that_is_not_covered_is_told(built: tuple[Path, str]) -> None:
    uncovered = run("profile", "check", built[0], "--for", "lenet5")
    assert uncovered.exit_code == 1
    assert "does not cover lenet5" in uncovered.stderr
    assert "not all of them for conv 1->" in uncovered.stderr
    assert "kernel 5x5" in uncovered.stderr
    command = f"hwprune profile build --runtime onnxruntime --for lenet5:1x28x28 --out {built[0]}"
    assert f"Add them with: {command}\n" in uncovered.stderr


@pytest.mark.parametrize(("undisturbed_us", "measured_us"), [(2.0, 50.0), (1.5, 40.0)])
def test_networks_are_compared_by_what_the_rows_count_and_at_the_batch_of_the_profile(
    undisturbed_us: float, measured_us: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(small_network(1), torch.zeros(2, 1, 12, 12))
    rows = [
        Row(replace(operator, name=""), 2.0, undisturbed_us=undisturbed_us)
        for operator in trace_operators(network.model, network.example)
    ]
    shipped = hwprune.load_profile("any-cpu-ort")
    spec = shipped.runtime.model_copy(update={"batch": 3})
    profile = shipped.model_copy(update={"rows": LatencyTable(tuple(rows), batch=3), "runtime": spec})
    batches: list[object] = []
    monkeypatch.setattr(
        profile_check, "export", lambda *_arguments, **options: batches.append(options["batch"])
    )
    timing = hwprune.Timing(50.0, 49.0, 60.0, 9, undisturbed_us=40.0)
    monkeypatch.setattr(profile_check, "measure", lambda *_arguments: timing)
    (error,) = compare_networks(profile, [("small", network)], lambda error: None)
    assert error.measured_us == measured_us
    assert error.predicted_us == pytest.approx(len(rows) * undisturbed_us)
    assert batches == [3]


def test_networks_are_compared_at_the_clock_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(small_network(1), torch.zeros(2, 1, 12, 12))
    rows = [
        Row(replace(operator, name=""), 2.0, undisturbed_us=1.5)
        for operator in trace_operators(network.model, network.example)
    ]
    shipped = hwprune.load_profile("any-cpu-ort")
    provenance = shipped.provenance.model_copy(update={"reference_us": 100.0})
    profile = shipped.model_copy(update={"rows": LatencyTable(tuple(rows)), "provenance": provenance})

    @contextmanager
    def slower(_spec: RuntimeSpec) -> Iterator[Callable[[], float]]:
        yield lambda: 125.0

    timings = iter([hwprune.Timing(50.0, 49.0, 60.0, 9, undisturbed_us=us) for us in (40.0, 30.0)])
    monkeypatch.setattr(profile_check, "reference_kernel", slower)
    monkeypatch.setattr(profile_check, "export", lambda *_arguments, **_options: None)
    monkeypatch.setattr(profile_check, "measure", lambda *_arguments: next(timings))
    (error,) = compare_networks(profile, [("small", network)], lambda error: None, passes=2)
    assert (error.measured_us, error.pace) == (pytest.approx(24.0), pytest.approx(0.8))


@pytest.mark.parametrize("option", ["--plot", "--markdown"])
def test_a_folder_where_a_file_is_to_be_written_is_wrong_usage(tmp_path: Path, option: str) -> None:
    checked = run("profile", "check", "any-cpu-ort", option, tmp_path)
    assert checked.exit_code == 2
    assert "is a directory" in checked.stderr


def test_a_profile_of_another_machine_is_not_compared(built: tuple[Path, str], tmp_path: Path) -> None:
    copy = tmp_path / "mine"
    shutil.copytree(built[0], copy)
    file = copy / "profile.toml"
    file.write_text(re.sub("(?m)^model = .*$", 'model = "Another CPU"', file.read_text()))
    checked = run("profile", "check", copy)
    assert checked.exit_code == 1
    assert "another machine" in checked.stderr


def test_a_template_is_valid_and_has_nothing_to_compare() -> None:
    checked = run("profile", "check", shipped_folder() / "any-cpu-ort")
    assert checked.exit_code == 0
    assert "template" in checked.output
    as_json = run("profile", "check", shipped_folder() / "any-cpu-ort", "--json")
    assert json.loads(as_json.stdout) == {"profile": "any-cpu-ort", "template": True}


def test_the_check_that_follows_a_build_is_of_its_networks() -> None:
    assert check_command("mine", []) == "hwprune profile check mine"
    command = check_command("my devices/pi", ["lenet5", "user:net:1x12x12"])
    assert command == "hwprune profile check 'my devices/pi' --for lenet5 --for user:net:1x12x12"


def test_an_interrupted_build_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(profile_build, "build_profile", interrupted)
    monkeypatch.setattr("sys.argv", ["hwprune", "profile", "build", "--anew", "--out", "mine"])
    result = run("profile", "build", "--anew", "--out", tmp_path / "mine")
    assert result.exit_code == 130
    assert "Go on with: hwprune profile build --out mine" in result.stderr


@pytest.mark.parametrize(("threads", "count"), [("all", 6), ("2", 2)])
def test_all_cores_may_be_asked_for(
    threads: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AskedError(Exception):
        pass

    def asked(request: BuildRequest, *_arguments: object) -> None:
        assert request.template.runtime.threads == count
        raise AskedError

    monkeypatch.setattr(profile_build, "build_profile", asked)
    facts = {**profile_build.environment(), "cores": 6}
    monkeypatch.setattr(profile_build, "environment", lambda: facts)
    result = run("profile", "build", "--threads", threads, "--for", "lenet5", "--out", tmp_path / "mine")
    assert isinstance(result.exception, AskedError), result.output


@pytest.mark.parametrize("threads", ["0", "some"])
def test_no_number_of_threads_is_wrong_usage(threads: str, tmp_path: Path) -> None:
    result = run("profile", "build", "--threads", threads, "--out", tmp_path / "mine")
    assert result.exit_code == 2
    assert "--threads" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--for", "resnet20:1x2"], "malformed"),
        (["--for", "resnet9"], "unknown model"),
    ],
)
def test_bad_networks_are_told(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = run("profile", "build", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    result = run("profile", "build", "--out", tmp_path)
    assert result.exit_code == 1
    assert "no profile" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_folder_whose_name_can_be_no_profile_is_refused(tmp_path: Path) -> None:
    result = run("profile", "build", "--out", tmp_path / "my device")
    assert result.exit_code == 1
    assert "is no name" in result.stderr


def test_the_table_that_a_killed_build_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "latency.csv").write_text("half")
    profile_build._check_out(tmp_path)


def test_a_profile_is_written_as_it_is_read(tmp_path: Path) -> None:
    template = to_toml(hwprune.load_profile("x86-avx2-ort"))
    assert "threads = 1" in template
    folder = tmp_path / "x86-avx2-ort"
    folder.mkdir()
    (folder / "profile.toml").write_text(template)
    shutil.copy(shipped_folder() / "x86-avx2-ort" / "latency.csv", folder)
    assert hwprune.load_profile(folder).rules == hwprune.load_profile("x86-avx2-ort").rules


def test_errors_are_counted_for_both_kinds_of_widths_apart() -> None:
    errors = [NetworkError("a", 101.0, 100.0, 0.0), NetworkError("b", 90.0, 100.0, 0.0, UNALIGNED)]
    found = by_widths(errors)
    assert {kind: summary["worst"] for kind, summary in found.items()} == {
        "aligned": 0.01,
        "unaligned": 0.1,
        "all": 0.1,
    }
    assert "unaligned" not in by_widths(errors[:1])


@pytest.mark.slow
def test_a_profile_of_8_bits_is_built_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(__file__, tmp_path / "user_networks_8.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(steady, "STEADY", float("inf"))
    spec, out = "user_networks_8:small_network:1x12x12", tmp_path / "profiles" / "mine"
    result = run("profile", "build", "--precision", "int8", "--for", spec, "--out", out)
    assert result.exit_code == 0, result.output
    profile = hwprune.load_profile(out)
    assert profile.runtime.precision == "int8"
    assert profile.table is not None
    assert profile.table.precision == "int8"
    checked = run("profile", "check", out, "--for", spec, "--count", 3, "--json")
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["networks"] == 3
