"""What comparisons of trainings have in common: outcomes kept as lines of JSON, and rows over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from finished_lines import add_line, read_lines
from torch import Tensor

from hwprune.groups.base import Allowance, Grouping, GroupSet, Terms

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

#: One training of a comparison: a frozen dataclass of strings and numbers.
Run = TypeVar("Run", bound="DataclassInstance")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        accuracy: On the whole test set, in [0, 1].
        alive_before: Groups that lived when the support settled, before anything was cut.
        kept: Groups in the end.
        total: Groups of the dense network.
        seconds: Of the training.
    """

    accuracy: float
    alive_before: int
    kept: int
    total: int
    seconds: float


class Witness:
    """An allowance that notes how many groups live when it is asked for the survivors."""

    def __init__(self, groups: GroupSet, allowance: Allowance) -> None:
        self._groups, self._allowance = groups, allowance
        self.limit = allowance.limit
        self.record = allowance.record
        self.alive_before = groups.group_count

    def terms(self, grouping: Grouping, alive: Tensor) -> Terms:
        """The allowance's."""
        return self._allowance.terms(grouping, alive)

    def survivors(self, norms: Tensor, alive: Tensor) -> Tensor:
        """The allowance's."""
        self.alive_before = self._groups.groups_alive(alive)
        return self._allowance.survivors(norms, alive)


def finish_all(
    planned: Iterable[Run], train: Callable[[Run], Outcome], journal: Path, kind: type[Run], made_by: str
) -> dict[Run, Outcome]:
    """The outcomes of all planned runs, in their order; those that ``journal`` does not tell of are trained.

    So are those that it tells of by other code: a page never mixes the two.

    Args:
        planned: In the order in which they are made.
        train: Makes one run.
        journal: Lines of JSON, the fields of the run and of its outcome; each new run adds one.
        kind: Class of the runs.
        made_by: By which code (:func:`code_fingerprint.fingerprint`).
    """
    known = read_finished(journal, kind, made_by)
    others = sum(line.get("made_by") != made_by for line in read_lines(journal))
    if others:
        print(f"{journal}: {others} finished runs are of other code or versions and do not count", flush=True)
    finished: dict[Run, Outcome] = {}
    for run in planned:
        if run not in known:
            known[run] = train(run)
            add_line(journal, {**asdict(run), **asdict(known[run]), "made_by": made_by})
        finished[run] = known[run]
        print(f"{run}: {known[run]}", flush=True)
    return finished


def read_finished(path: Path, kind: type[Run], made_by: str) -> dict[Run, Outcome]:
    """The runs of some code that the lines of ``path`` tell of; none where it does not exist."""
    names = {field.name for field in fields(kind)}
    finished = {}
    for line in read_lines(path):
        if line.pop("made_by", None) != made_by:
            continue
        facts = {name: line.pop(name) for name in names}
        finished[kind(**facts)] = Outcome(**line)
    return finished


@dataclass(frozen=True, slots=True)
class Row:
    """A way of pruning over all seeds.

    Attributes:
        name: What the table calls it.
        outcomes: One per seed.
    """

    name: str
    outcomes: Sequence[Outcome]

    @property
    def scores(self) -> list[float]:
        """Accuracies in percent."""
        return [100 * outcome.accuracy for outcome in self.outcomes]

    @property
    def mean(self) -> float:
        """Mean accuracy in percent."""
        return statistics.mean(self.scores)

    @property
    def deviation(self) -> str:
        """Sample standard deviation in points; a dash for a single seed."""
        return f"{statistics.stdev(self.scores):.2f}" if len(self.scores) > 1 else "-"

    @property
    def seconds(self) -> float:
        """Mean of the seeds."""
        return statistics.mean(outcome.seconds for outcome in self.outcomes)

    def cells(self, dense: float) -> str:
        """A line of :func:`table`; ``dense`` is the accuracy of the dense networks, in percent."""
        before = statistics.mean(outcome.alive_before for outcome in self.outcomes)
        first = self.outcomes[0]
        return (
            f"| {self.name} | {self.mean:.2f} | {self.deviation} | {self.mean - dense:+.2f} "
            f"| {before:.0f} | {first.kept} of {first.total} | {self.seconds:.1f} |"
        )


def rows_of(finished: Mapping[Run, Outcome], name_of: Callable[[Run], str | None]) -> list[Row]:
    """A row per name.

    Args:
        finished: The runs.
        name_of: What the row of a run is called; ``None`` where it belongs to no row.
    """
    outcomes: dict[str, list[Outcome]] = {}
    for run, outcome in finished.items():
        name = name_of(run)
        if name is not None:
            outcomes.setdefault(name, []).append(outcome)
    return [Row(*item) for item in outcomes.items()]


def table(first: str, rows: Iterable[Row], dense: float) -> list[str]:
    """Lines of a table, best accuracy first.

    Args:
        first: Head of the first column.
        rows: In any order.
        dense: Accuracy of the dense networks, in percent.
    """
    return [
        f"| {first} | accuracy | sd | against dense | before the cut | kept | seconds |",
        "|---|---|---|---|---|---|---|",
        *(row.cells(dense) for row in sorted(rows, key=lambda row: -row.mean)),
    ]
