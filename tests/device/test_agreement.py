"""How far two tables agree."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import hwprune
from hwprune.cli import main
from hwprune.device.agreement import compare_tables
from hwprune.device.library import shipped_folder
from hwprune.device.rows import Row
from hwprune.device.table import LatencyTable
from hwprune.errors import ProfileError
from hwprune.operators import Operator


def table(*latencies: float, undisturbed: float = 1.0, first: int = 1, batch: int = 1) -> LatencyTable:
    """Rows of ascending widths; what they take undisturbed is a part of their medians."""
    rows = [
        Row(Operator("relu", width, width), latency, undisturbed_us=undisturbed * latency)
        for width, latency in enumerate(latencies, start=first)
    ]
    return LatencyTable(tuple(rows), batch)


def test_rows_in_common_are_compared() -> None:
    found = compare_tables(table(10.0, 20.0, 30.0, 40.0), table(22.0, 30.0, 32.0, 7.0, first=2))
    assert (found["rows"], found["only_first"], found["only_second"]) == (3, 1, 1)
    assert (found["median"], found["worst"], found["bias"]) == (0.1, 0.2, 0.0)
    assert found["p95"] == pytest.approx(0.19)


def test_rows_among_as_many_bytes_are_compared_where_both_tables_noted_it() -> None:
    small, large = (
        replace(row, among=size) for size in (1 << 20, 1 << 24) for row in table(10.0, undisturbed=0.8)
    )
    slower = [replace(row, undisturbed_us=2 * row.undisturbed_us) for row in (small, large)]
    mixed, other = LatencyTable((small, large)), LatencyTable((slower[1],))
    assert (compare_tables(mixed, other)["rows"], compare_tables(mixed, other)["worst"]) == (1, 1.0)
    assert compare_tables(LatencyTable((small,)), table(5.0, undisturbed=0.8))["worst"] == 0.5


def test_medians_are_compared_where_a_table_has_nothing_else() -> None:
    exact, rough = table(10.0, undisturbed=0.8), table(10.0)
    assert compare_tables(exact, rough)["compared"] == "median"
    assert compare_tables(exact, rough)["worst"] == 0.0
    both = compare_tables(exact, table(20.0, undisturbed=0.5))
    assert (both["compared"], both["worst"]) == ("undisturbed", 0.25)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (table(1.0, first=9), "no row in common"),
        (table(1.0, batch=4), r"expected batch 1, fp32.*got batch 4, fp32"),
        (replace(table(1.0), precision="int8"), "got batch 1, int8"),
    ],
)
def test_tables_that_cannot_be_compared_are_told(other: LatencyTable, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        compare_tables(table(1.0), other)


def test_two_profiles_are_compared_by_a_command(tmp_path: Path) -> None:
    name = "x86-avx2-ort"
    shutil.copytree(shipped_folder() / name, tmp_path / name)
    lines = (tmp_path / name / "latency.csv").read_text().splitlines(keepends=True)
    (tmp_path / name / "latency.csv").write_text("".join(lines[:-10]))
    arguments = ["profile", "compare", str(shipped_folder() / name), str(tmp_path / name)]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    rows = len(hwprune.load_profile(name).table or ())
    assert (record["rows"], record["only_first"], record["only_second"]) == (rows - 10, 10, 0)
    assert record["worst"] == 0.0
    assert f"{rows - 10} rows in common, 10 in {name} alone" in CliRunner().invoke(main, arguments).output
    template = CliRunner().invoke(main, ["profile", "compare", name, "any-cpu-ort"])
    assert template.exit_code == 1
    assert "is a template without a latency table" in template.stderr
