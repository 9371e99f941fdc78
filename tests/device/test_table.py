"""Latency tables: what a file may hold, and what lies between its rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hwprune
from hwprune.device.rows import Row
from hwprune.device.steps import Steps
from hwprune.device.table import LatencyTable
from hwprune.errors import MissingRowError, ProfileError
from hwprune.operators import Operator

CONV = Operator("conv", 16, 16, 8, 8, 3, 3, padding=1)


def row(inputs: int, outputs: int, latency: float) -> Row:
    operator = replace(CONV, in_channels=inputs, out_channels=outputs)
    return Row(operator, latency, latency, latency + 0.25, 50)


def table() -> LatencyTable:
    return LatencyTable(tuple(row(i, o, 1.0 + i * o / 64) for i in (8, 16, 32) for o in (8, 16, 32)))


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "latency.csv"
    table().write(path, {"cpu": "a machine"})
    assert set(LatencyTable.read(path).rows) == set(table().rows)
    assert path.read_text().startswith("# cpu: a machine\n")


BROKEN = {
    "negative time": ("3.00,3.00,3.25", "-3.00,3.00,3.25", "a positive number of microseconds"),
    "zero time": ("3.00,3.00,3.25", "0,0,3.25", "a positive number of microseconds"),
    "no number": ("3.00,3.00,3.25", "fast,3.00,3.25", "a positive number of microseconds"),
    "infinite time": ("3.00,3.00,3.25", "inf,3.00,3.25", "a positive number of microseconds"),
    "percentiles in disorder": ("3.00,3.00,3.25", "3.00,3.20,3.30", "at most 3.0"),
    "unknown operator": ("\nconv,", "\nconvolve,", "unknown kind of operator"),
    "unknown column": ("median_us", "median_ms", "did you mean 'median_us'"),
    "missing cell": (",50,3.00\n", ",50\n", "wrong number of cells"),
    "channels below one": (",8,8,8,8,1,fp32,", ",0,8,8,8,1,fp32,", "at least 1"),
    "channels without end": (",8,8,8,8,1,fp32,", f",{10**12},8,8,8,1,fp32,", "at most 1048576"),
    "digits without end": (",8,8,8,8,1,fp32,", f",{'1' * 5000},8,8,8,1,fp32,", "at most 1048576"),
    "quotes": ("\nconv,", '\n"conv,', "unknown kind of operator"),
    "a long cell": ("\nconv,", f"\n{'c' * 200_000},", "unknown kind of operator"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_told_with_file_line_and_what_was_expected(tmp_path: Path, name: str) -> None:
    old, new, message = BROKEN[name]
    path = tmp_path / "latency.csv"
    table().write(path, {"cpu": "a machine"})
    content = path.read_text()
    if name == "negative time" or "3.00" in old:
        content = content.replace("2.00,2.00,2.25", "3.00,3.00,3.25", 1)
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(ProfileError) as caught:
        LatencyTable.read(path)
    assert message.lower() in str(caught.value).lower()
    assert "latency.csv, line " in str(caught.value)


def test_zeros_are_priced_by_density(tmp_path: Path) -> None:
    sparse = [
        Row(replace(CONV, density=density), price) for density, price in ((1.0, 9.0), (0.5, 8.0), (0.1, 2.0))
    ]
    path = tmp_path / "latency.csv"
    LatencyTable((*sparse, row(8, 16, 3.0))).write(path, {})
    assert path.read_text().splitlines()[0].endswith(",runs,undisturbed_us,density")
    found = LatencyTable.read(path)
    assert {row.operator for row in found} == {row.operator for row in sparse} | {
        replace(CONV, in_channels=8)
    }
    priced = {0.5: 8.0, 0.3: 5.0, 0.75: 8.5, 0.01: 2.0, 1.0: 9.0}
    for density, price in priced.items():
        assert found.latency_us(replace(CONV, density=density)) == pytest.approx(price), density
    with pytest.raises(MissingRowError, match=r"density 0\.3"):
        found.latency_us(replace(CONV, in_channels=8, density=0.3))
    path.write_text(path.read_text().replace(",0.5\n", ",1.5\n"))
    with pytest.raises(ProfileError, match=r"column density.*at most 1"):
        LatencyTable.read(path)


def test_a_dense_table_has_no_column_for_densities(tmp_path: Path) -> None:
    table().write(tmp_path / "latency.csv", {})
    assert "density" not in (tmp_path / "latency.csv").read_text()


def test_a_missing_row_names_itself_and_the_command_that_adds_it() -> None:
    profile = hwprune.load_profile("x86-avx2-ort")

    def told(profile: hwprune.DeviceProfile) -> str:
        assert profile.table is not None
        with pytest.raises(MissingRowError) as caught:
            profile.table.latency_us(replace(CONV, height=17, width=19, name="stem"))
        return str(caught.value)

    command = "hwprune profile build --runtime onnxruntime --for"
    assert "conv 16->16 on 17x19, kernel 3x3, padding 1 (in layer stem" in told(profile)
    named = profile.wanted_for("resnet20:3x17x19")
    assert told(named).endswith(f"{command} resnet20:3x17x19 --out {profile.folder}")
    spelt = "(MODEL: a built-in name or package.module:callable; CxHxW: the shape of an image)"
    assert told(profile).endswith(f"{command} MODEL:CxHxW --out {profile.folder} {spelt}")


def test_the_command_that_adds_rows_has_the_options_of_the_profile() -> None:
    profile = hwprune.load_profile("x86-avx2-ort")
    spec = profile.runtime.model_copy(update={"precision": "int8", "threads": 2, "batch": 4})
    changed = profile.model_copy(update={"runtime": spec, "folder": None, "name": "two words"})
    assert changed.build_command(["a:1x2x3", "b:1x2x3"]) == (
        "hwprune profile build --runtime onnxruntime --precision int8 --threads 2 --batch 4"
        " --for a:1x2x3 --for b:1x2x3 --out 'two words'"
    )


def test_widths_off_the_steps_are_covered_only_where_the_other_kernel_was_measured() -> None:
    steps = Steps(align=8, divisor=4)
    aligned = table()
    assert aligned.covers_narrower(replace(CONV, in_channels=32, out_channels=32), steps)
    wide = replace(CONV, in_channels=32, out_channels=32)
    assert not aligned.covers_unaligned(wide, steps, 0.5)
    others = aligned.merged(row(i, o, 2.0 + i * o / 64) for i in (1, 15, 31) for o in (8, 16, 32))
    assert others.covers_unaligned(wide, steps, 0.5)


def test_two_rows_of_one_operator_are_told(tmp_path: Path) -> None:
    path = tmp_path / "latency.csv"
    table().write(path, {})
    path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
    with pytest.raises(ProfileError, match="two rows measure the same operator"):
        LatencyTable.read(path)


def test_widths_are_rounded_up_to_their_step_and_interpolated() -> None:
    steps = Steps(align=8)
    for inputs, outputs, wanted in (
        (16, 16, 5.0),
        (16, 9, 5.0),
        (16, 24, 7.0),
        (24, 16, 7.0),
        (24, 24, 10.0),
    ):
        operator = replace(CONV, in_channels=inputs, out_channels=outputs)
        assert table().latency_us(operator, steps) == pytest.approx(wanted), (inputs, outputs)


@pytest.mark.parametrize(("inputs", "outputs"), [(40, 16), (16, 40), (4, 64)])
def test_nothing_is_extrapolated(inputs: int, outputs: int) -> None:
    with pytest.raises(MissingRowError, match=f"{inputs}->{outputs}"):
        table().latency_us(replace(CONV, in_channels=inputs, out_channels=outputs), Steps(align=8))


def test_another_configuration_is_missing_and_named() -> None:
    with pytest.raises(MissingRowError, match="5x5"):
        table().latency_us(replace(CONV, kernel_h=5, kernel_w=5, padding=2))


def test_nothing_is_interpolated_across_places_of_the_period() -> None:
    steps = Steps(align=8, period=16)
    uneven = LatencyTable(
        tuple(row(16, o, latency) for o, latency in ((8, 5.0), (16, 6.0), (24, 9.0), (40, 13.0)))
    )
    operator = replace(CONV, in_channels=16)
    assert uneven.latency_us(replace(operator, out_channels=40), steps) == 13.0
    with pytest.raises(MissingRowError):
        uneven.latency_us(replace(operator, out_channels=32), steps)


def test_widths_that_the_divisor_does_not_divide_have_rows_of_their_own() -> None:
    steps = Steps(align=8, divisor=4)
    rows = [row(8, 16, 3.0), row(16, 16, 5.0), row(9, 16, 20.0), row(15, 16, 26.0)]
    found = LatencyTable(tuple(rows)).latencies_us(
        CONV, np.array([12, 9, 12, 15]), np.array([16, 16, 16, 16]), steps
    )
    assert found.tolist() == [5.0, 20.0, 5.0, 26.0]
    assert LatencyTable(tuple(rows)).latency_us(replace(CONV, in_channels=11), steps) == pytest.approx(22.0)


def test_one_channel_of_a_depthwise_convolution_is_priced_as_two() -> None:
    def depthwise(channels: int, latency: float = 1.0) -> Row:
        return Row(Operator("conv", channels, channels, 8, 8, 3, 3, padding=1, groups=channels), latency)

    # No row of a single channel, which would be another operator.
    table = LatencyTable((depthwise(2, 5.0), depthwise(8, 11.0), depthwise(16, 19.0)))
    wide = depthwise(16).operator
    widths = np.array([1, 2, 5, 16])
    assert table.latencies_us(wide, widths, widths, Steps(align=1)).tolist() == [5.0, 5.0, 8.0, 19.0]


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    table = LatencyTable((Row(Operator("conv", 8, 8, 4, 4), 19.5),))
    table.write(tmp_path / "latency.csv", {"date": "today"})
    text = (tmp_path / "latency.csv").read_text()
    (tmp_path / "latency.csv").write_text("\ufeff" + text)
    assert LatencyTable.read(tmp_path / "latency.csv").rows == table.rows
    (tmp_path / "latency.csv").write_text(text[:-3])
    with pytest.raises(ProfileError, match="ends in the middle of a line"):
        LatencyTable.read(tmp_path / "latency.csv")


def test_what_is_left_of_groups_is_covered_and_has_no_rows_of_its_own() -> None:
    grouped = replace(CONV, in_channels=16, out_channels=32, groups=4)
    widths = [(inputs, outputs) for inputs in (8, 16) for outputs in (8, 16, 32)]
    rows = [
        Row(replace(grouped, in_channels=inputs, out_channels=outputs), float(inputs + outputs))
        for inputs, outputs in widths
    ]
    table, left = LatencyTable(tuple(rows)), replace(grouped, in_channels=4, out_channels=16)
    assert table.covers(left, Steps(8))
    assert table.latency_us(left, Steps(8)) == 8 + 16
    assert not table.covers_narrower(left, Steps(8))
    assert not table.covers_unaligned(left, Steps(8), 0.25)


def noted(inputs: int, outputs: int, latency: float, mib: int) -> Row:
    return replace(row(inputs, outputs, latency), among=mib << 20)


def test_rows_of_one_operator_among_other_bytes_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = (noted(8, 8, 3.0, 1), noted(8, 8, 9.0, 16), row(8, 8, 4.0), row(8, 16, 5.0))
    path = tmp_path / "latency.csv"
    LatencyTable(rows).write(path, {})
    assert path.read_text().splitlines()[0].endswith(",among_kib")
    assert set(LatencyTable.read(path).rows) == set(rows)
    twice = path.read_text() + path.read_text().splitlines()[-1] + "\n"
    path.write_text(twice)
    with pytest.raises(ProfileError, match="two rows measure the same operator"):
        LatencyTable.read(path)


def test_a_network_is_priced_by_rows_among_about_as_many_bytes() -> None:
    """One of 1 MiB, one of 16 MiB that is wider, and widths that only the second one had measured."""
    small = [noted(i, o, 1.0, 1) for i in (8, 16) for o in (8, 16)]
    large = [noted(i, o, 3.0, 16) for i in (8, 12, 16, 32) for o in (8, 12, 16, 32)]
    mixed, steps = LatencyTable((*small, *large)), Steps()
    narrow = [(CONV, steps)]
    wide = [*narrow, (replace(CONV, in_channels=32, out_channels=32), steps)]
    halfway = replace(CONV, in_channels=12, out_channels=12)
    assert mixed.for_network(narrow, 1_500_000).latency_us(halfway) == 1.0
    assert mixed.for_network(narrow, 20_000_000).latency_us(halfway) == 3.0
    assert mixed.for_network(wide, 1_500_000).latency_us(halfway) == 3.0  # one price for all of them
    assert mixed.among(1_000_000).rows == tuple(small)
    assert not mixed.among(4_000_000).rows


def test_where_no_size_has_all_rows_those_of_all_sizes_count() -> None:
    first, second = noted(16, 16, 1.0, 1), noted(32, 16, 3.0, 16)
    wanted = [(CONV, Steps()), (replace(CONV, in_channels=32), Steps())]
    chosen = LatencyTable((first, second)).for_network(wanted, 1 << 20)
    assert [chosen.latency_us(operator) for operator, _ in wanted] == [1.0, 3.0]


def test_rows_without_a_note_are_of_any_size() -> None:
    plain = table()
    assert plain.for_network([(CONV, Steps())], 1 << 20) is plain
    assert set(plain.among(1 << 24).rows) == set(plain.rows)
    topped = plain.merged([noted(32, 32, 99.0, 1)])
    assert len(topped) == len(plain) + 1
    assert topped.among(1 << 20).latency_us(replace(CONV, in_channels=32, out_channels=32)) == 99.0
