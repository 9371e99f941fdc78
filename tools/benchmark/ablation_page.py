"""What the ablation came to: the page."""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

from journal import DENSE, Outcome, Run

from hwprune.runtime.environment import environment

HEAD = "| part | seeds | accuracy (sd) | against {whole}, points (sd) | seconds | channels | parameters |"


def as_markdown(outcomes: Mapping[Run, Outcome], whole: str, descriptions: Mapping[str, str]) -> str:
    """The page.

    Args:
        outcomes: All runs, of one task.
        whole: What every part is compared with.
        descriptions: Part to what it is, in the order of the list.
    """
    task = next(iter(outcomes)).task
    dense = [100 * each.accuracy for run, each in outcomes.items() if run.contender == DENSE]
    facts = ", ".join(f"{name} {value}" for name, value in environment().items())
    thin = "" if task.fraction == 1 else f" with {task.fraction:g} of its channels"
    lines = [
        "# What each part is worth",
        "",
        f"Written by `python {shlex.join(sys.argv)}`; {facts}.",
        "",
        f"{task.network}{thin}, the first {task.images} training images of Fashion-MNIST, batches of",
        f"{task.batch_size}, peak learning rate {task.learning_rate:g}. The dense network is trained for",
        f"{task.epochs} epochs: {mean_and_deviation(dense, '.2f')} %. What starts from it is trained for",
        f"{task.left} epochs more, what starts from random weights for {task.epochs}. One thing is changed",
        "at a time. Accuracy on all test images, in percent, mean and standard deviation over the seeds;",
        "differences are paired by seed. Speed-ups are **predicted**, not measured, from the table of",
        f"`{task.device}` for everybody.",
    ]
    for speedup in sorted({run.speedup for run in outcomes if run.contender != DENSE}):
        lines += [
            "",
            f"## {speedup:g} times faster, predicted",
            "",
            HEAD.format(whole=f"`{whole}`"),
            "|---" * 7 + "|",
            *_rows({run: each for run, each in outcomes.items() if run.speedup == speedup}, whole),
        ]
    lines += ["", "## What is what", "", *(f"- `{name}`: {what}" for name, what in descriptions.items())]
    return "\n".join(lines) + "\n"


def _rows(outcomes: Mapping[Run, Outcome], whole: str) -> Iterator[str]:
    """A line per part, best accuracy first."""
    parts: dict[str, dict[int, Outcome]] = {}
    for run, outcome in outcomes.items():
        if run.contender != DENSE:
            parts.setdefault(run.contender, {})[run.seed] = outcome
    reference = parts.get(whole, {})
    for name, mine in sorted(parts.items(), key=lambda item: -_mean(item[1].values(), "accuracy")):
        gaps = [
            100 * (mine[seed].accuracy - reference[seed].accuracy)
            for seed in mine
            if name != whole and seed in reference
        ]
        scores = mean_and_deviation([100 * each.accuracy for each in mine.values()], ".2f")
        sizes = [_mean(mine.values(), key) for key in ("seconds", "channels", "parameters")]
        yield (
            f"| {name} | {len(mine)} | {scores} | {mean_and_deviation(gaps, '+.2f')} "
            f"| {sizes[0]:.0f} | {sizes[1]:.0f} | {sizes[2]:,.0f} |"
        )


def _mean(outcomes: Iterable[Outcome], key: str) -> float:
    return float(statistics.mean(getattr(each, key) for each in outcomes))


def mean_and_deviation(values: Sequence[float], form: str) -> str:
    """Mean, and in brackets the sample standard deviation; a dash where there is none.

    >>> mean_and_deviation([1.0, 2.0], "+.2f"), mean_and_deviation([], ".2f")
    ('+1.50 (0.71)', '-')
    """
    if not values:
        return "-"
    deviation = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
    return f"{statistics.mean(values):{form}} ({deviation})"
