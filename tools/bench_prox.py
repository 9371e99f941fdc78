"""Times one proximal step of the envelope against the number of groups, beside what else could be done.

    python tools/bench_prox.py --sizes 1e2,1e4,1e6 --repeats 9 --out page.md

All are timed in turns in one run: the exact envelope cold and warm, the same step from sorted breakpoints,
the k-support norm of ModOpt (the plain form, in float64, in a process of its own), and an in-place update of
as many floats by SGD with momentum.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch
from bench_pages import machine_line, percentiles, verdict, write_page
from bench_prox_peer import PACKAGES, Peer, PeerUnavailableError
from torch import Tensor

from hwprune.penalties import GroupEnvelope

SIZES = "1e2,1e3,1e4,1e5,1e6,3e6,2.5e7"
#: The most that is wanted of a step at the largest size, in updates by SGD.
WANTED = {"warm": 4.0, "cold": 12.0}
#: On a GPU, in copies of the weights: each is read and written once.
WANTED_COPIES = 3.0
#: From so many groups on, the time per group is wanted to stay within this ratio of itself.
MANY, FLAT = 100_000, 1.5
STRENGTH = 0.02
KEPT = 0.3
#: How far a norm moves between two steps of a training: about the learning rate times a relative gradient.
STEP = 1e-3
LEARNING_RATE, MOMENTUM = 0.1, 0.9
#: A peer that took longer than this for one call is not asked again, nor for more groups.
PATIENCE_S = 20.0
#: What takes longer than this wins the caches back within its own run.
SETTLES_ITSELF_S = 0.5


@dataclass(frozen=True, slots=True)
class Problem:
    """Norms of a step and of the step before it, shape ``(groups,)``, float32, and what comes of them."""

    norms: Tensor
    before: Tensor
    budget: int
    factors: Tensor

    @staticmethod
    def draw(groups: int, device: str = "cpu") -> Problem:
        """Log-normal norms, of which :data:`KEPT` may stay; the same on every device."""
        generator = torch.Generator().manual_seed(groups)
        before = (0.5 * torch.randn(groups, generator=generator)).exp_()
        moved = torch.randn(groups, generator=generator).mul_(STEP).add_(1.0).mul_(before)
        norms, earlier = moved.to(device), before.to(device)
        return Problem(norms, earlier, math.ceil(KEPT * groups), torch.empty_like(norms))


def sorted_factors(norms: Tensor, budget: float, strength: float) -> Tensor:
    """The factors of the exact envelope from all breakpoints in order, in n log n time.

    Args:
        norms: Shape ``(groups,)``, positive.
        budget: Groups that may stay, less than there are.
        strength: ``L``, less than 1.
    """
    wide = norms.double()
    # u = (s t - L) / (1 - L) is 0 until s = L / t and 1 from s = 1 / t on.
    ends, order = torch.cat([strength / wide, 1 / wide]).sort()
    rates = torch.cat([wide, -wide])[order].cumsum(0) / (1 - strength)
    spent = (rates[:-1] * ends.diff()).cumsum(0)
    last = int(torch.searchsorted(spent, budget))
    already = float(spent[last - 1]) if last else 0.0
    root = ends[last] + (budget - already) / rates[last]
    opened = ((wide * root - strength) / (1 - strength)).clamp_(0.0, 1.0)
    return (opened / (opened * (1 - strength) + strength)).to(norms.dtype)


def contestants(problem: Problem) -> dict[str, Callable[[], object]]:
    """What is timed in this process."""
    envelope = GroupEnvelope(problem.budget)
    start = envelope.solve(problem.before, STRENGTH).root
    gradient, buffer, weights = (torch.randn_like(problem.norms) for _ in range(3))

    def update() -> None:
        buffer.mul_(MOMENTUM).add_(gradient)
        weights.add_(buffer, alpha=-LEARNING_RATE)

    copying = {"copy": lambda: buffer.copy_(weights)} if problem.norms.is_cuda else {}
    return {
        **copying,
        "SGD": update,
        "cold": lambda: envelope.solve(problem.norms, STRENGTH, out=problem.factors),
        "warm": lambda: envelope.solve(problem.norms, STRENGTH, start, problem.factors),
        "sorted": lambda: sorted_factors(problem.norms, problem.budget, STRENGTH),
    }


def check_sorted(problem: Problem) -> None:
    """Ends the run if the rival and the envelope do not agree."""
    found = GroupEnvelope(problem.budget).prox_factors(problem.norms, STRENGTH)
    torch.testing.assert_close(
        found, sorted_factors(problem.norms, problem.budget, STRENGTH), rtol=0, atol=1e-6
    )


def peer_difference(problem: Problem, peer: Peer) -> float:
    """The greatest difference between the peer's last factors and those of the plain envelope."""
    envelope = GroupEnvelope(problem.budget, debias=False)
    factors = envelope.prox_factors(problem.norms.double(), STRENGTH)
    return float((torch.from_numpy(peer.point()) / problem.norms.double() - factors).abs().max())


def time_sizes(
    sizes: Sequence[int], repeats: int, peer: Peer | None, device: str = "cpu"
) -> tuple[dict[int, dict[str, list[float]]], list[float]]:
    """Seconds of everybody by size, and how far the peer's results are from ours.

    Sizes take turns as well, so that a noisy stretch of the machine befalls all of them alike.
    """
    problems = {groups: Problem.draw(groups, device) for groups in sorted(sizes)}
    calls = {groups: contestants(problem) for groups, problem in problems.items()}
    seconds: dict[int, dict[str, list[float]]] = {
        groups: {name: [] for name in [*named, *(["ModOpt"] if peer is not None else [])]}
        for groups, named in calls.items()
    }
    differences: list[float] = []
    for groups, problem in problems.items():
        check_sorted(problem)
        for call in calls[groups].values():
            call()
    asked = len(problems)
    for turn in range(repeats):
        for place, (groups, problem) in enumerate(problems.items()):
            for name, call in calls[groups].items():
                seconds[groups][name].append(_settled(partial(_seconds, call, device)))
            if peer is None or place >= asked:
                continue
            peer.set_problem(problem.norms.double().numpy())
            seconds[groups]["ModOpt"].append(_settled(partial(peer.seconds, problem.budget, STRENGTH)))
            if not turn:
                differences.append(peer_difference(problem, peer))
            if seconds[groups]["ModOpt"][-1] > PATIENCE_S:
                asked = place
    return seconds, differences


def _settled(turn: Callable[[], float]) -> float:
    """The seconds of a turn that finds the caches its own, not those of whoever was timed before."""
    taken = turn()
    return taken if taken > SETTLES_ITSELF_S else turn()


def _seconds(call: Callable[[], object], device: str) -> float:
    """What one call takes."""
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    """Waits until the device has done what it was asked to."""
    if device == "cuda":
        torch.cuda.synchronize()


def as_markdown(
    results: dict[int, dict[str, list[float]]],
    repeats: int,
    remark: str,
    differences: Sequence[float],
    device: str = "cpu",
) -> list[str]:
    """The page."""
    agreement = f"; its factors differ from ours by at most {max(differences):.1g}" if differences else ""
    lines = [
        "# The time of one proximal step",
        "",
        f"Written by `tools/bench_prox.py`: log-normal norms, {KEPT:.0%} of the groups may stay, strength",
        f"{STRENGTH}; float32 but for ModOpt (float64, plain form). *Warm* starts from the root of the step",
        f"before, from which every norm has moved by about {STEP:.1%}; *sorted* sorts all breakpoints; *SGD*",
        "is an in-place update of as many floats with momentum. All were timed in turns, and the sizes as",
        f"well; runs of less than {SETTLES_ITSELF_S} s follow an uncounted one of the same, for the caches",
        "that others have left.",
        "",
        f"{machine_line(device)} {repeats} runs each. ModOpt: {remark}{agreement}.",
        "",
        "Median in microseconds (10th to 90th percentile):",
        "",
        "| groups | SGD | warm | warm / SGD | warm, ns per group | cold | cold / SGD | cold, ns per group "
        "| sorted | ModOpt |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_row(groups, seconds) for groups, seconds in results.items()),
    ]
    return [*lines, "", "Wanted, of the medians:", "", *_verdicts(results)]


def _verdicts(results: dict[int, dict[str, list[float]]]) -> list[str]:
    """Whether the wanted figures are met."""
    median = {
        groups: {name: percentiles(seconds[name])[0] for name in ("SGD", *WANTED)}
        for groups, seconds in results.items()
    }
    most = max(results)
    lines = []
    for name, limit in WANTED.items():
        ratio = median[most][name] / median[most]["SGD"]
        lines.append(verdict(f"{name} / SGD at {most:,} groups", ratio, limit))
    if "copy" in results[most]:
        copy = percentiles(results[most]["copy"])[0]
        ratio = median[most]["warm"] / copy
        lines.append(verdict(f"warm / copy ({1e6 * copy:,.0f} us) at {most:,} groups", ratio, WANTED_COPIES))
    for name in WANTED:
        each = [median[groups][name] / groups for groups in results if groups >= MANY]
        spread = max(each) / min(each) if len(each) > 1 else None
        lines.append(verdict(f"{name}, greatest over least time per group from {MANY:,} on", spread, FLAT))
    return lines


def _row(groups: int, seconds: dict[str, list[float]]) -> str:
    median = {name: percentiles(values)[0] for name, values in seconds.items() if values}
    cells = [
        f"{groups:,}",
        _cell(seconds["SGD"]),
        _cell(seconds["warm"]),
        f"{median['warm'] / median['SGD']:.2f}",
        f"{median['warm'] / groups * 1e9:.2f}",
        _cell(seconds["cold"]),
        f"{median['cold'] / median['SGD']:.2f}",
        f"{median['cold'] / groups * 1e9:.2f}",
        _cell(seconds["sorted"]),
        _cell(seconds["ModOpt"]) if seconds.get("ModOpt") else "not run",
    ]
    return f"| {' | '.join(cells)} |"


def _cell(seconds: Sequence[float]) -> str:
    median, low, high = (f"{1e6 * value:,.0f}" for value in percentiles(seconds))
    return f"{median} ({low} to {high})"


@click.command()
@click.option("--sizes", default=SIZES, show_default=True, help="Numbers of groups, with commas.")
@click.option("--repeats", default=15, show_default=True, help="Timed runs of each.")
@click.option("--threads", default=1, show_default=True, help="Threads of PyTorch.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda; ModOpt has only the first.")
@click.option("--peer/--no-peer", default=True, help="Whether to install and time ModOpt.")
@click.option(
    "--environment",
    type=click.Path(path_type=Path),
    default=Path(tempfile.gettempdir()) / "hwprune-bench-prox",
    show_default=True,
    help="Folder of ModOpt's environment.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Where the page goes; shown by default.")
def main(
    sizes: str, repeats: int, threads: int, device: str, peer: bool, environment: Path, out: Path | None
) -> None:
    """Times one proximal step against the number of groups."""
    torch.set_num_threads(threads)
    peer = peer and device == "cpu"
    remark = f"`{PACKAGES[0]}`"
    with contextlib.ExitStack() as open_peers:
        rival: Peer | None = None
        try:
            rival = open_peers.enter_context(Peer(environment)) if peer else None
        except PeerUnavailableError as error:
            remark = f"not available ({error})"
        wanted = [int(float(size)) for size in sizes.split(",")]
        results, differences = time_sizes(wanted, repeats, rival, device)
    write_page(as_markdown(results, repeats, remark if peer else "not asked for", differences, device), out)


if __name__ == "__main__":
    main()
