"""Latency tables as CSV files: comment lines, a header, one row per measured operator."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hwprune.device.kinds import KINDS, describe
from hwprune.device.rows import DECIMALS, Row
from hwprune.errors import ProfileError
from hwprune.files import write_text
from hwprune.operators import Operator

#: Columns in the order they are written; the last value says whether a file may leave the column out.
COLUMNS: dict[str, bool] = {
    "op": True,
    "kernel_h": True,
    "kernel_w": True,
    "stride": True,
    "padding": False,
    "dilation": True,
    "groups": True,
    "fused": False,
    "in_channels": True,
    "out_channels": True,
    "height": True,
    "width": True,
    "batch": True,
    "precision": True,
    "median_us": True,
    "p10_us": True,
    "p90_us": True,
    "runs": True,
    "undisturbed_us": False,
    "density": False,
    "stride_w": False,
    "padding_w": False,
    "dilation_w": False,
    "among_kib": False,
}
#: Columns of sizes along the columns of a map, for tables in which some differ from those along its rows.
_ALONG_COLUMNS = ("stride_w", "padding_w", "dilation_w")
FUSED = ("", "add")
#: No size and no count is larger; what is interpolated takes memory for every width up to the largest.
MOST = 2**20


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds.

    Attributes:
        rows: The rows.
        batch: Images per run that they were measured with.
        precision: Precision that they were measured in.
    """

    rows: tuple[Row, ...]
    batch: int
    precision: str


def read(path: Path) -> Content:
    """Reads and validates a table.

    A file without the column ``padding`` means the padding that keeps the map's size at stride 1, one
    without ``fused`` means that nothing is fused besides an activation, one without ``density`` that no
    weight is zero, one without ``stride_w``, ``padding_w`` and ``dilation_w`` that the columns of a map are
    treated as its rows; of a map of a single row the padding is then that of the columns. One without
    ``among_kib``, or a row with 0 there, does not say among how many bytes it was measured.

    Raises:
        ProfileError: If it is missing or malformed; the message names file, line and column.
    """
    lines = _lines(path)
    if not lines:
        raise ProfileError("the latency table has no rows", where=path, expected="at least one row")
    batch, precision = lines[0].integer("batch", 1), lines[0].cells["precision"]
    seen: dict[tuple[Operator, int], int] = {}
    rows = []
    for line in lines:
        row = _row(line)
        if (row.operator, row.among) in seen:
            raise ProfileError(
                "two rows measure the same operator",
                where=f"{path}, line {line.number}",
                expected=f"one row for {describe(row.operator)}",
                got=f"another one in line {seen[row.operator, row.among]}",
                hint="remove one of them",
            )
        for column, value in (("batch", str(batch)), ("precision", precision)):
            if line.cells[column] != value:
                raise line.error("the rows of a table differ in how they were measured", column, value)
        seen[row.operator, row.among] = line.number
        rows.append(row)
    return Content(tuple(rows), batch, precision)


def write(path: Path, content: Content, header: Mapping[str, object]) -> None:
    """Writes rows sorted by configuration, with ``# name: value`` lines on top, atomically.

    Densities have a column only where there are others than 1, and sizes along the columns of a map only
    where some cannot be told from those along its rows; bytes that rows were measured among where that was
    noted of any.
    """
    lines = [f"# {name}: {' '.join(str(value).split())}" for name, value in header.items()]
    sparse = any(row.operator.density != 1 for row in content.rows)
    oblong = any(_oblong(row.operator) for row in content.rows)
    noted = any(row.among for row in content.rows)
    left_out = {
        *(() if sparse else ("density",)),
        *(() if oblong else _ALONG_COLUMNS),
        *(() if noted else ("among_kib",)),
    }
    lines.append(",".join(name for name in COLUMNS if name not in left_out))
    for row in sorted(content.rows, key=_order):
        operator = row.operator
        cells = [
            operator.kind, operator.kernel_h, operator.kernel_w, operator.stride, operator.padding,
            operator.dilation, operator.groups, operator.fused, operator.in_channels,
            operator.out_channels, operator.height, operator.width, content.batch, content.precision,
            *(f"{value:.{DECIMALS}f}" for value in (row.median_us, row.p10_us, row.p90_us)), row.runs,
            f"{row.undisturbed_us:.{DECIMALS}f}", *([f"{operator.density:g}"] if sparse else []),
            *(_along_columns(operator) if oblong else ()), *([row.among >> 10] if noted else []),
        ]  # fmt: skip
        lines.append(",".join(map(str, cells)))
    write_text(path, "\n".join(lines) + "\n")


def _along_columns(operator: Operator) -> tuple[int, int, int]:
    return operator.strides[1], operator.paddings[1], operator.dilations[1]


def _oblong(operator: Operator) -> bool:
    """Whether a file without sizes along the columns would be read as another operator."""
    one_row = operator.height == operator.kernel_h == 1 and operator.padding > 0
    return one_row or _along_columns(operator) != (operator.stride, operator.padding, operator.dilation)


def _order(row: Row) -> tuple[object, ...]:
    operator = row.operator
    return (
        operator.kind, operator.kernel_h, operator.kernel_w, operator.strides, operator.paddings,
        operator.dilations, operator.groups, operator.fused, operator.height, operator.width,
        operator.in_channels, operator.out_channels, -operator.density, row.among,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the file and the columns it is split into."""

    path: Path
    number: int
    cells: Mapping[str, str]

    def error(self, what: str, column: str, expected: str) -> ProfileError:
        where = f"{self.path}, line {self.number}, column {column}"
        return ProfileError(what, where=where, expected=expected, got=repr(self.cells[column]))

    def integer(self, column: str, least: int) -> int:
        expected = f"an integer of at least {least} and at most {MOST}"
        try:
            value = int(self.cells[column])
        except ValueError as error:
            raise self.error("a table row is malformed", column, expected) from error
        if not least <= value <= MOST:
            raise self.error("a table row is malformed", column, expected)
        return value

    def microseconds(self, column: str) -> float:
        return self._positive(column, "a positive number of microseconds", sys.float_info.max)

    def fraction(self, column: str) -> float:
        return self._positive(column, "a number above 0 and at most 1", 1.0)

    def _positive(self, column: str, expected: str, most: float) -> float:
        try:
            value = float(self.cells[column])
        except ValueError as error:
            raise self.error("a table row is malformed", column, expected) from error
        if not 0 < value <= most:
            raise self.error("a table row is malformed", column, expected)
        return value


def _lines(path: Path) -> list[_Line]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError("the latency table cannot be read", where=path, got=error) from error
    if text and not text.endswith("\n"):
        raise ProfileError(
            "the latency table ends in the middle of a line",
            where=f"{path}, line {len(text.splitlines())}",
            expected="a line break after every row",
            hint="the file may have been cut off: copy or measure it again",
        )
    numbered = [
        (number, line)
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.startswith("#")
    ]
    if not numbered:
        raise ProfileError("the latency table is empty", where=path, expected=f"columns {', '.join(COLUMNS)}")
    parsed = [line.split(",") for _, line in numbered]  # nothing that may stand in a cell needs quotes
    names = [name.strip() for name in parsed[0]]
    _check_columns(path, numbered[0][0], names)
    lines = []
    for (number, _), cells in zip(numbered[1:], parsed[1:], strict=True):
        if len(cells) != len(names):
            raise ProfileError(
                "a table row has the wrong number of cells",
                where=f"{path}, line {number}",
                expected=len(names),
                got=len(cells),
            )
        lines.append(
            _Line(path, number, {name: cell.strip() for name, cell in zip(names, cells, strict=True)})
        )
    return lines


def _check_columns(path: Path, number: int, names: list[str]) -> None:
    where = f"{path}, line {number}"
    for name in names:
        if name not in COLUMNS:
            close = difflib.get_close_matches(name, COLUMNS, n=1)
            raise ProfileError(
                f"unknown column {name!r}",
                where=where,
                expected=f"some of {', '.join(COLUMNS)}",
                hint=f"did you mean {close[0]!r}?" if close else None,
            )
    missing = [name for name, required in COLUMNS.items() if required and name not in names]
    if missing:
        raise ProfileError(
            f"the column {missing[0]!r} is missing",
            where=where,
            expected=f"columns {', '.join(COLUMNS)}",
            got=", ".join(names),
        )
    if len(set(names)) != len(names):
        raise ProfileError("a column appears twice", where=where, got=", ".join(names))


def _row(line: _Line) -> Row:
    kind, fused = line.cells["op"], line.cells.get("fused", "")
    if kind not in KINDS:
        raise line.error("a table row has an unknown kind of operator", "op", f"one of {', '.join(KINDS)}")
    if fused not in FUSED:
        raise line.error("a table row is malformed", "fused", "nothing or 'add'")
    height, kernel_h, kernel_w = (line.integer(name, 1) for name in ("height", "kernel_h", "kernel_w"))
    stride, stride_w = _both_axes(line, "stride", 1)
    dilation, dilation_w = _both_axes(line, "dilation", 1)
    padding, padding_w = (kernel_h - 1) * dilation // 2, (kernel_w - 1) * dilation_w // 2
    if "padding" in line.cells:
        padding, padding_w = _both_axes(line, "padding", 0)
        if "padding_w" not in line.cells and height == kernel_h == 1:
            padding = 0  # written when maps of a single row were never padded along it
    operator = Operator(
        kind,
        line.integer("in_channels", 1),
        line.integer("out_channels", 1),
        height,
        line.integer("width", 1),
        kernel_h,
        kernel_w,
        stride,
        padding,
        dilation,
        line.integer("groups", 1),
        fused,
        density=line.fraction("density") if "density" in line.cells else 1.0,
        stride_w=stride_w,
        padding_w=padding_w,
        dilation_w=dilation_w,
    )
    low, median, high = (line.microseconds(name) for name in ("p10_us", "median_us", "p90_us"))
    if low > median:
        raise line.error("the tenth percentile lies above the median", "p10_us", f"at most {median}")
    if high < median:
        raise line.error("the ninetieth percentile lies below the median", "p90_us", f"at least {median}")
    alone = line.microseconds("undisturbed_us") if "undisturbed_us" in line.cells else median
    among = line.integer("among_kib", 0) << 10 if "among_kib" in line.cells else 0
    return Row(operator, median, low, high, line.integer("runs", 1), alone, among)


def _both_axes(line: _Line, column: str, least: int) -> tuple[int, int]:
    """What a column says of the rows of a map, and of its columns."""
    rows = line.integer(column, least)
    return rows, line.integer(f"{column}_w", least) if f"{column}_w" in line.cells else rows
