"""Timing exported networks: warmed up, alternating, until the median is certain."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from hwprune.device.profile import DeviceProfile, RuntimeSpec, check_profile
from hwprune.errors import InputError
from hwprune.runtime.base import Array, ClockedSession, InputInfo, Session, on_gpu, runtime_for
from hwprune.runtime.environment import environment, hardware_for
from hwprune.runtime.half import is_half, to_half
from hwprune.runtime.onnx_values import read_values
from hwprune.runtime.quantize import is_quantized, quantize
from hwprune.runtime.stopwatch import Run, calm, loadings_of, sample
from hwprune.runtime.undisturbed import undisturbed

#: Files that tell whether they are quantised.
_TOLD_APART = (".onnx", ".xml")
#: Files that do not tell their precision.
_BUILT = (".engine",)
#: Ending of files that are not timed as they are, to why not and the runtime that the ONNX file is timed in.
_NOT_TIMED = {
    ".pt2": ("a program of torch.export is not loaded: it may run any code while it is", "torch"),
    ".param": (
        "a file of ncnn does not say how large its inputs are, and latency depends on it",
        "ncnn",
    ),
}


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency of a network, measured.

    Attributes:
        median_us: Median, in microseconds.
        p10_us: 10th percentile.
        p90_us: 90th percentile.
        runs: Timed runs that count.
        environment: Machine, versions, runtime, precision and threads, and how many further runs were set
            aside that something disturbed (:func:`~hwprune.runtime.stopwatch.calm`).
        undisturbed_us: What predictions are fitted to and compared with
            (:func:`~hwprune.runtime.undisturbed.undisturbed`); the median where it is not given.
    """

    median_us: float
    p10_us: float
    p90_us: float
    runs: int
    environment: Mapping[str, Any] = field(default_factory=dict)
    undisturbed_us: float = -1.0

    def __post_init__(self) -> None:
        if self.undisturbed_us < 0:
            object.__setattr__(self, "undisturbed_us", self.median_us)

    def summary(self) -> dict[str, float]:
        """Median, p10, p90 and runs, as reports carry them."""
        return {
            "median": round(self.median_us, 3),
            "p10": round(self.p10_us, 3),
            "p90": round(self.p90_us, 3),
            "runs": self.runs,
        }


def measure(path: str | Path, profile: DeviceProfile, runs: int | None = None) -> Timing:
    """Times one ONNX file on this machine in the runtime that the profile names.

    Args:
        path: The file.
        profile: Says runtime, threads, batch and precision.
        runs: Timed runs; by default as many as the median needs to be certain to 0.4 %, and those set aside
            that something disturbed.

    Raises:
        InputError: If there is no such file, or nothing can be made up for it to read.
        RuntimeUnavailableError: If the runtime is missing or refuses the file.
    """
    check_profile(profile, "measure")
    return measure_alternately({"network": Path(path)}, profile, runs)["network"]


def measure_alternately(
    paths: Mapping[str, Path], profile: DeviceProfile, runs: int | None = None
) -> dict[str, Timing]:
    """Times several ONNX files in alternation, so that a drift of the machine meets all of them alike.

    Args:
        paths: Name to file; see :func:`as_run`.
        profile: Says runtime, threads, batch and precision.
        runs: Timed runs of each; see :func:`measure`.

    Returns:
        Name to timing.
    """
    check_request(paths, runs)
    runtime = runtime_for(profile.runtime)
    with as_run(paths, profile.runtime) as files:
        loadings = loadings_for(profile.runtime, files.values(), runs)
        loaded = [
            {name: runtime.open(path, profile.runtime) for name, path in files.items()}
            for _ in range(loadings)
        ]
    sessions = loaded[0]
    feeds = {name: random_feed(session.inputs, profile.runtime.batch) for name, session in sessions.items()}
    networks = {name: [once(each[name], feeds[name]) for each in loaded] for name in paths}
    facts = {
        **environment(),
        "runtime": profile.runtime.kind,
        "runtime_version": runtime.version(),
        "threads": profile.runtime.threads,
        "loadings": loadings,
        **({"gpu": hardware_for(profile.runtime).model} if on_gpu(profile.runtime) else {}),
    }
    batches = {name: batch_of(session.inputs, profile.runtime.batch) for name, session in sessions.items()}
    precisions = {name: precision_of(path, files[name], profile.runtime) for name, path in paths.items()}
    return timings_of(
        sample(networks, runs),
        {name: {**facts, "batch": batches[name], **precisions[name]} for name in paths},
        runs,
    )


def loadings_for(spec: RuntimeSpec, files: Iterable[Path], runs: int | None) -> int:
    """How often each file is loaded to be timed; once for a GPU, where building an engine may take minutes.

    See :func:`~hwprune.runtime.stopwatch.loadings_of`.

    Args:
        spec: Says what is measured.
        files: That are run.
        runs: Timed runs of each, where they were asked for.
    """
    return 1 if on_gpu(spec) else loadings_of([file.stat().st_size for file in files], runs)


def once(session: Session, feed: Mapping[str, Array]) -> Run:
    """What runs a network once; on a device with a clock of its own it tells how long that took."""
    return session.clocked(feed) if isinstance(session, ClockedSession) else partial(session.run, feed)


@contextmanager
def as_run(paths: Mapping[str, Path], spec: RuntimeSpec) -> Iterator[dict[str, Path]]:
    """Files as a device of that precision runs them.

    For one of 8 bits, files in single precision are quantised: on random inputs, because what a kernel takes
    does not depend on the values. What such a file computes is of no use. For one of half precision they are
    converted.

    Args:
        paths: Name to ONNX file.
        spec: Says the precision.

    Yields:
        Name to file; those made here are gone afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        files = dict(paths)
        for index, (name, path) in enumerate(paths.items()):
            made = Path(folder) / f"{index}.onnx"
            if spec.precision == "fp16" and path.suffix == ".onnx" and not is_half(path):
                files[name] = made
                to_half(path, made)
            elif spec.precision == "int8" and not is_quantized(path):
                files[name] = made
                quantize(path, files[name], [random_feed(read_values(path).inputs, spec.batch)])
        yield files


def precision_of(path: Path, run: Path, spec: RuntimeSpec) -> dict[str, str]:
    """What a file ran in, for the record: its own precision, whatever the profile says.

    Args:
        path: The file.
        run: What :func:`as_run` made of it.
        spec: Says the precision of all others.
    """
    if (run != path and spec.precision == "fp16") or (path.suffix == ".onnx" and is_half(path)):
        return {"precision": "fp16"}
    if run != path:
        return {"precision": spec.precision, "quantised": "for this measurement, on random inputs"}
    if path.suffix in _BUILT:
        return {"precision": "as built"}
    quantized = path.suffix in _TOLD_APART and is_quantized(path)
    return {"precision": "int8" if quantized else spec.precision}


def check_request(paths: Mapping[str, Path], runs: int | None) -> None:
    """Raises where a file to time is missing or not to be trusted, or fewer runs are asked for than one.

    Raises:
        InputError: In these cases.
    """
    for path in paths.values():
        if not path.is_file():
            raise InputError("no such model file", where=path, expected="an ONNX file")
        if path.suffix in _NOT_TIMED:
            reason, runtime = _NOT_TIMED[path.suffix]
            raise InputError(
                reason,
                where=path,
                expected="an ONNX file",
                hint=f"time the ONNX file that it was made from, with --device of a profile for {runtime}",
            )
    if runs is not None and not (isinstance(runs, Integral) and runs >= 1):
        raise InputError("this is no number of runs", expected="a whole number, at least 1", got=runs)


def batch_of(inputs: Sequence[InputInfo], batch: int) -> int:
    """The batch size that a file is run with: its own where it is fixed.

    Args:
        inputs: Of the file.
        batch: Where it is open.
    """
    fixed = inputs[0].shape[0] if inputs and inputs[0].shape else None
    return batch if fixed is None else fixed


def random_feed(inputs: Sequence[InputInfo], batch: int, seed: int = 0) -> dict[str, Array]:
    """Random data for every input; an open number of images becomes the batch size.

    Raises:
        InputError: If another size of an input is open, or its elements are no numbers.
    """
    generator = np.random.default_rng(seed)
    feed: dict[str, Array] = {}
    for item in inputs:
        shape = item.filled(batch)
        if np.issubdtype(item.dtype, np.floating):
            feed[item.name] = generator.standard_normal(shape).astype(item.dtype)
        else:
            feed[item.name] = np.zeros(shape, dtype=item.dtype)
    return feed


def timings_of(
    samples: Mapping[str, list[float]], facts: Mapping[str, Mapping[str, Any]], runs: int | None
) -> dict[str, Timing]:
    """Durations of networks that were run in alternation as their timings.

    Args:
        samples: Name to durations in microseconds, in the order of the runs.
        facts: Name to what stands in the record.
        runs: The number of runs that was asked for: all of them count. Where it was left open, those count
            that nothing disturbed (:func:`~hwprune.runtime.stopwatch.calm`).
    """
    counted = samples if runs is not None else calm(samples)
    return {
        name: _timing_of(counted[name], {**facts[name], "runs_set_aside": len(values) - len(counted[name])})
        for name, values in samples.items()
    }


def _timing_of(values: Sequence[float], facts: Mapping[str, Any]) -> Timing:
    p10, median, p90 = (float(value) for value in np.percentile(values, [10, 50, 90]))
    return Timing(median, p10, p90, len(values), facts, undisturbed(values))
