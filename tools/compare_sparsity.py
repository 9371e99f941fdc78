"""Single weights at 95 % and 99 % sparsity, and N:M blocks, on LeNet-300-100 and LeNet-5.

    python tools/compare_sparsity.py --out docs/sparsity.md

Every method gets the same network, images and epochs in all, and its own default strength. Finished runs are
kept as lines of JSON beside OUT, and not repeated while code and versions stay what they are.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click
from bench_pages import machine_line
from code_fingerprint import fingerprint
from compared_runs import Outcome, Row, finish_all, rows_of, table
from sparsity_runs import DENSE, NETWORKS, PATTERNS, RANDOM, TRAINED, Network, Run, planned, train

from hwprune.files import write_text

#: How to read the tables.
EXPLANATION = (
    "Accuracy on all test images, in percent, mean and standard deviation (sd) over the seeds. All have",
    "the same schedule and their own default strength; how budgets come down was chosen on other seeds of",
    "these networks, nothing else was tuned. Differences of the size of the sd mean nothing. *Before the",
    "cut* is how many prunable weights the method itself had left when the support settled, on average;",
    "what exceeds the budget was then cut by norm. *Seconds* are those of one thread of a shared",
    "processor, without the making of a trained start: they tell roughly what a method costs.",
    "",
    "The budget of penalties that know one (`envelope`, `wgsef`, `hard-threshold`, `sr-ste`) comes down",
    "gradually; `hard-threshold` is therefore gradual magnitude pruning. `magnitude` is cut once: from",
    "random weights where the others settle, from a trained start in the first step, as ASP does it.",
    "`asp` from random weights spends half the epochs on a dense network, to the end of its learning",
    "rate, cuts, and spends the other half on what is left. `sr-ste` cuts at every step, too, and trains",
    "the weights that it cuts on behind the zeros, so that they may come back, until the support settles.",
    "Blocks run along the inputs of a layer; a layer whose inputs are no multiple of four stays dense (the",
    "first of LeNet-5).",
)


def heading(network: Network, start: str, seeds: int) -> list[str]:
    """The title of a section and what was done for it."""
    epochs = f"{network.epochs} epochs from random weights"
    if start == TRAINED:
        epochs = f"{network.further} epochs from a dense network of {network.epochs} epochs"
    return [
        "",
        f"## {network.title}, from {'random weights' if start == RANDOM else 'a trained start'}",
        "",
        f"The first {network.images} training images of Fashion-MNIST, unchanged, {epochs}, batches of",
        f"{network.batch_size}, peak learning rate {network.learning_rate:g}, {seeds} seeds.",
    ]


def section(finished: dict[Run, Outcome], name: str, start: str) -> list[str]:
    """The tables of one network and start."""
    here = {run: outcome for run, outcome in finished.items() if (run.network, run.start) == (name, start)}
    (dense,) = rows_at(here, DENSE)
    lines = heading(NETWORKS[name], start, len(dense.outcomes))
    lines.append(f"Dense: {dense.mean:.2f}, sd {dense.deviation}, {dense.seconds:.1f} s.")
    for key, pattern in PATTERNS.items():
        lines += ["", f"### {pattern.title}", "", *table("method", rows_at(here, key), dense.mean)]
    return lines


def rows_at(finished: dict[Run, Outcome], pattern: str) -> list[Row]:
    """A row per method."""
    return rows_of(finished, lambda run: run.method if run.pattern == pattern else None)


def as_markdown(finished: dict[Run, Outcome]) -> str:
    """The page."""
    lines = [
        "# Single weights and N:M blocks",
        "",
        f"Written by `python {shlex.join(sys.argv)}`; {machine_line()}",
        "",
        *EXPLANATION,
    ]
    for name, start in sorted(dict.fromkeys((run.network, run.start) for run in finished)):
        lines += section(finished, name, start)
    return "\n".join(lines) + "\n"


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The page; OUT.jsonl has the runs."
)
@click.option("--seeds", default=3, show_default=True)
@click.option(
    "--network",
    "networks",
    type=click.Choice(list(NETWORKS)),
    multiple=True,
    default=list(NETWORKS),
    show_default=True,
    help="Networks of the page.",
)
@click.option(
    "--start",
    "starts",
    type=click.Choice([RANDOM, TRAINED]),
    multiple=True,
    default=[RANDOM, TRAINED],
    show_default=True,
    help="What pruning starts from.",
)
def main(out: Path, seeds: int, networks: tuple[str, ...], starts: tuple[str, ...]) -> None:
    """Trains what is missing, then writes the page."""
    runs = planned(seeds, networks, starts)
    here = Path(__file__).parent
    made_by = fingerprint(
        {name: here / name for name in ("sparsity_runs.py", "lenet300.py", "compared_runs.py")}
    )
    finished = finish_all(runs, train, out.with_name(f"{out.name}.jsonl"), Run, made_by)
    write_text(out, as_markdown(finished))


if __name__ == "__main__":
    main()
