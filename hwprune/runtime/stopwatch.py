"""Runs networks in alternation and keeps every duration: nothing but the standard library.

What is measured here and what is measured on another machine is measured by this same code: it is sent along.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

#: Runs that are not counted, and the least time they take.
WARMUP_RUNS, WARMUP_SECONDS = 20, 0.2
#: Timed runs in a block before the next network has its turn.
BLOCK = 20
#: Runs that are not counted when a network has its turn, at most, and the time after which they are enough.
SETTLING_RUNS, SETTLING_SECONDS = 20, 0.04
#: Runs go on until the median's confidence interval is this narrow, or one of the bounds is reached.
PRECISION = 0.004
LEAST_RUNS, MOST_RUNS, MOST_SECONDS = 200, 4000, 20.0
#: A block that is slower than the fast ones by more than this was disturbed.
DISTURBED = 0.1
#: Which of the blocks, from the fastest on, is called fast: not the very fastest, which may be luck.
FAST = 0.05
#: The part of all blocks that counts at least: what was disturbed least where too little was not at all.
LEAST_CALM = 0.2
#: Whether it is enough is asked anew after this part more.
GROWTH = 0.1
#: How often a network is loaded, at most, and the bytes of files that may be loaded for that in all.
LOADINGS, LOADED_BYTES = 5, 2**28

#: Runs a network once.
Run = Callable[[], object]


def loadings_of(sizes: Sequence[int], runs: int | None) -> int:
    """How often each network is to be loaded: where its weights and maps come to lie changes what it takes.

    A network of 65 us differs by 2 % (one standard deviation) from one loading of its file to the next, as
    long as it is loaded. Every loading has its turn, so that a timing tells of their middle.

    Args:
        sizes: Of the files, in bytes.
        runs: Timed runs of each, as :func:`sample` is asked for; fewer turns need fewer loadings.

    >>> loadings_of([2_800_000, 1_450_000], None), loadings_of([60_000_000, 33_000_000], None)
    (5, 2)
    >>> loadings_of([2**30], None), loadings_of([1_450_000], 2 * BLOCK)
    (1, 2)
    """
    turns = LOADINGS if runs is None else math.ceil(runs / BLOCK)
    return max(min(LOADINGS, turns, LOADED_BYTES // max(sum(sizes), 1)), 1)


def sample(networks: Mapping[str, Sequence[Run]], runs: int | None) -> dict[str, list[float]]:
    """Times networks in alternation, so that a drift of the machine meets all of them alike.

    Args:
        networks: Name to functions that run the network once, one for each time that it was loaded
            (:func:`loadings_of`), as many of every network; where one returns a float, that is what the run
            took, in microseconds, by a clock of its own.
        runs: Timed runs of each; by default as many as the median of the calm ones needs to be certain to
            0.4 %, see :func:`calm`.

    Returns:
        Name to durations in microseconds, in the order of the runs.
    """
    samples: dict[str, list[float]] = {name: [] for name in networks}
    with _no_garbage_collection():
        for loaded in networks.values():
            for run in loaded:
                _warm_up(run, WARMUP_SECONDS / len(loaded))
        if runs is None:
            _turns_until_certain(networks, samples)
        else:
            turns = 0
            while missing := runs - len(next(iter(samples.values()))):
                _turn(networks, samples, turns, min(BLOCK, missing))
                turns += 1
    return samples


def _turns_until_certain(networks: Mapping[str, Sequence[Run]], samples: Mapping[str, list[float]]) -> None:
    start, turns, ask_after = time.perf_counter(), 0, 1.0
    while turns < ask_after or not _certain(samples, time.perf_counter() - start):
        if turns >= ask_after:
            ask_after = turns * (1 + GROWTH)
        _turn(networks, samples, turns, BLOCK)
        turns += 1


def _turn(
    networks: Mapping[str, Sequence[Run]], samples: Mapping[str, list[float]], turn: int, count: int
) -> None:
    for name, loaded in networks.items():
        run = loaded[turn % len(loaded)]
        if len(networks) > 1 or len(loaded) > 1:
            _settle(run)
        samples[name] += _block(run, count)


def _settle(run: Run) -> None:
    """Runs a network until the caches are its own again, as they are where it runs by itself.

    Another network has just left them its own, and one whose weights are about as large as the last level
    takes many runs to win that back.
    """
    start, done = time.perf_counter(), 0
    while not done or (done < SETTLING_RUNS and time.perf_counter() - start < SETTLING_SECONDS):
        run()
        done += 1


def calm(samples: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """The runs during which nothing else disturbed the machine, or those that it disturbed least.

    Judged are turns, in which every network ran one block: those in which some network's block was a tenth
    slower than its fast ones are set aside, for all networks alike, so that none gains by it. Where less
    than a fifth is left then, the fifth that is nearest to that counts, and whatever is as near.

    Args:
        samples: Name to durations as :func:`sample` returns them.

    >>> fast, slow = [10.0] * BLOCK, [14.0] * BLOCK
    >>> kept = calm({"dense": 12 * fast + 9 * slow, "slim": 9 * slow + 12 * fast})
    >>> len(kept["dense"]), len(kept["slim"]), max(kept["dense"])  # disturbed alike: all count
    (420, 420, 14.0)
    >>> kept = calm({"dense": 12 * fast + 2 * slow, "slim": 2 * slow + 12 * fast})
    >>> len(kept["dense"]), max(kept["dense"]), max(kept["slim"])
    (200, 10.0, 10.0)
    """
    slowness = _slowness(samples)
    return _kept(samples, _calm_turns(slowness) or _least_disturbed(slowness))


def _kept(samples: Mapping[str, list[float]], turns: Sequence[int]) -> dict[str, list[float]]:
    """The runs of some turns."""
    blocks = {name: _blocks(values) for name, values in samples.items()}
    return {name: [value for turn in turns for value in blocks[name][turn]] for name in samples}


def _slowness(samples: Mapping[str, list[float]]) -> list[float]:
    """Per turn, how many times as long as its fast blocks the network took that was slowed down most."""
    slowness: list[float] = []
    for values in samples.values():
        medians = [_median(sorted(block)) for block in _blocks(values)]
        fast = sorted(medians)[int(FAST * len(medians))]
        relative = [median / fast for median in medians]
        slowness = [max(pair) for pair in zip(slowness or relative, relative, strict=True)]
    return slowness


def _calm_turns(slowness: Sequence[float]) -> list[int] | None:
    """Which turns nothing disturbed; None where they are too few to stand for all."""
    turns = [turn for turn, slower in enumerate(slowness) if slower <= 1 + DISTURBED]
    return turns if len(turns) >= max(LEAST_RUNS / BLOCK, LEAST_CALM * len(slowness)) else None


def _least_disturbed(slowness: Sequence[float]) -> list[int]:
    """The turns that were disturbed least, where all were: a part of them, and those that are as near."""
    count = max(LEAST_RUNS / BLOCK, LEAST_CALM * len(slowness))
    most = sorted(slowness)[min(math.ceil(count), len(slowness)) - 1]
    return [turn for turn, slower in enumerate(slowness) if slower <= most]


def _blocks(values: Sequence[float]) -> list[Sequence[float]]:
    return [values[start : start + BLOCK] for start in range(0, len(values), BLOCK)]


def _block(run: Run, count: int) -> list[float]:
    durations = []
    for _ in range(count):
        start = time.perf_counter_ns()
        told = run()
        took = (time.perf_counter_ns() - start) / 1e3
        durations.append(told if isinstance(told, float) else took)
    return durations


def _warm_up(run: Run, seconds: float) -> None:
    start, done = time.perf_counter(), 0
    while done < WARMUP_RUNS or time.perf_counter() - start < seconds:
        run()
        done += 1


def _certain(samples: Mapping[str, list[float]], seconds: float) -> bool:
    """Whether the medians of what was run are certain, or will not be."""
    if seconds > MOST_SECONDS:
        return True
    turns = _calm_turns(_slowness(samples))
    kept = samples if turns is None else _kept(samples, turns)
    least = min(len(values) for values in kept.values())
    if least >= MOST_RUNS and turns is not None:
        return True
    return least >= LEAST_RUNS and all(median_interval(values) <= PRECISION for values in kept.values())


def median_interval(values: Sequence[float]) -> float:
    """Width of the 95 % confidence interval of the median as a fraction of it, from order statistics.

    >>> round(median_interval([1.0] * 50 + [1.1] * 50), 3)
    0.095
    """
    ordered = sorted(values)
    size = len(ordered)
    half = 0.98 * math.sqrt(size)  # 1.96 standard deviations of a binomial with p = 1/2
    low = max(math.floor(size / 2 - half), 0)
    high = min(math.ceil(size / 2 + half), size - 1)
    return (ordered[high] - ordered[low]) / _median(ordered)


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
