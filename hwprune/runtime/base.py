"""What every inference runtime offers, and which there are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from hwprune.device.profile import RuntimeSpec
from hwprune.device.runtimes import GPU_PROVIDERS
from hwprune.device.runtimes import REGISTRY as REGISTRY
from hwprune.errors import InputError, RuntimeUnavailableError

Array = npt.NDArray[Any]
#: Name of a kernel to its durations, in microseconds.
Samples = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to time something.

    Attributes:
        seconds: Roughly, within the bounds below.
        least_runs: At least as many timed runs.
        most_runs: At most as many timed runs.
        warmup_runs: Runs before them that are not counted.
    """

    seconds: float
    least_runs: int
    most_runs: int
    warmup_runs: int = 4

    def runs(self, seconds_per_run: float) -> int:
        """How many runs to time, from how long one takes."""
        return int(min(max(self.seconds / seconds_per_run, self.least_runs), self.most_runs))


@dataclass(frozen=True, slots=True)
class InputInfo:
    """An input of a model file.

    Attributes:
        name: Its name.
        shape: Sizes; ``None`` for open ones.
        dtype: Element type.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def filled(self, batch: int) -> tuple[int, ...]:
        """The shape of what the input is fed to be timed.

        Args:
            batch: Images of a run.

        Raises:
            InputError: If nothing can be fed without guessing: more than the number of images is open, or the
                elements are no numbers.
        """
        shape = fixed_shape(self.name, self.shape, batch)
        if self.dtype.kind not in _NUMBERS:
            raise InputError(
                "no data can be made up for an input of the model",
                where=f"input {self.name}",
                expected="elements that are numbers",
                got=self.dtype.name,
            )
        return shape


#: Kinds of element types that random data is made of: truth values, integers and fractions.
_NUMBERS = "biuf"


def fixed_shape(name: str, shape: Sequence[int | None], batch: int) -> tuple[int, ...]:
    """A shape with the number of images filled in, which alone may be open.

    Args:
        name: The input, for errors.
        shape: Its sizes, ``None`` for open ones.
        batch: Images of a run.

    Raises:
        InputError: If another size is open: any number put there would make another network.
    """
    sizes = [batch if axis == 0 and size is None else size for axis, size in enumerate(shape)]
    known = tuple(size for size in sizes if size is not None)
    if len(known) < len(sizes):
        raise InputError(
            "a size of an input of the model is open, and latency depends on it",
            where=f"input {name}",
            expected="an open size in the first dimension alone, the batch",
            got=f"({', '.join('?' if size is None else str(size) for size in shape)})",
            hint="export the model with fixed sizes",
        )
    return known


class Session(Protocol):
    """A model made ready to run."""

    @property
    def inputs(self) -> tuple[InputInfo, ...]:
        """The inputs."""
        ...

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        """Runs the model once and returns its outputs, complete."""
        ...


@runtime_checkable
class ClockedSession(Protocol):
    """A model on a device with a clock of its own, which tells what a run takes without the way there."""

    def clocked(self, feed: Mapping[str, Array]) -> Callable[[], float]:
        """Puts inputs on the device; returns what runs the model once and tells its microseconds."""
        ...


class Runtime(Protocol):
    """An inference runtime.

    Attributes:
        counts_recording: Whether its durations of kernels hold what recording them takes.
    """

    counts_recording: bool

    def version(self) -> str:
        """The installed version."""
        ...

    def open(self, path: Path, spec: RuntimeSpec) -> Session:
        """Makes an ONNX file ready to run."""
        ...

    def operator_samples(
        self, model: bytes, spec: RuntimeSpec, feed: Mapping[str, Array], effort: Effort
    ) -> Samples:
        """Durations of every kernel in each timed run, in microseconds, by the kernel's name."""
        ...


@runtime_checkable
class ProvidedRuntime(Protocol):
    """A runtime that runs on several kinds of devices, of which a package may lack some."""

    def check(self, spec: RuntimeSpec) -> None:
        """Raises where the provider of a profile is missing."""
        ...


#: Runtime kind to the precisions that it runs here; single precision alone where nothing is said.
PRECISIONS = {
    "onnxruntime": ("fp32", "int8"),
    "openvino": ("fp32", "int8"),
    "tensorrt": ("fp32", "fp16"),
    "tensorrt-rtx": ("fp32", "fp16"),
}
#: Runtime kinds without a batch dimension: images run one after the other.
ONE_IMAGE = frozenset({"ncnn"})
#: Runtime kinds that run on a GPU alone.
ON_GPU = frozenset({"tensorrt", "tensorrt-rtx"})


def runtime_for(spec: RuntimeSpec) -> Runtime:
    """The runtime of a profile, which must run the profile's precision.

    Raises:
        RuntimeUnavailableError: If it does not, there is no such runtime, or its package is missing or lacks
            the profile's provider.
    """
    runtime = get_runtime(spec.kind)
    check_precision(spec)
    if isinstance(runtime, ProvidedRuntime):
        runtime.check(spec)
    return runtime


def on_gpu(spec: RuntimeSpec) -> bool:
    """Whether networks of a profile run on a GPU.

    >>> on_gpu(RuntimeSpec(kind="tensorrt")), on_gpu(RuntimeSpec(kind="onnxruntime"))
    (True, False)
    """
    return spec.kind in ON_GPU or (spec.kind == "onnxruntime" and spec.provider in GPU_PROVIDERS)


def is_here(spec: RuntimeSpec) -> bool:
    """Whether the runtime of a profile is on this machine and runs the profile's precision."""
    try:
        runtime_for(spec)
    except RuntimeUnavailableError:
        return False
    return True


def check_precision(spec: RuntimeSpec) -> None:
    """Raises where a runtime does not run the precision that is asked of it.

    Raises:
        RuntimeUnavailableError: In that case.
    """
    precisions: tuple[str, ...] = PRECISIONS.get(spec.kind, ("fp32",))
    if on_gpu(spec) and "fp16" not in precisions:
        precisions += ("fp16",)
    if spec.precision not in precisions:
        others = ", ".join(kinds_running(spec.precision)) or "no runtime yet"
        raise RuntimeUnavailableError(
            f"the runtime {spec.kind} does not run {spec.precision} here",
            where="runtime.precision of the profile",
            expected=" or ".join(precisions),
            got=spec.precision,
            hint=f"for {spec.precision} there is {others}",
        )


def check_batch(spec: RuntimeSpec) -> None:
    """Raises where single operators are to be timed at a batch size at which a runtime cannot run them.

    Raises:
        RuntimeUnavailableError: In that case.
    """
    if spec.kind in ONE_IMAGE and spec.batch != 1:
        raise RuntimeUnavailableError(
            f"{spec.kind} runs one image at a time", where="batch", expected=1, got=spec.batch
        )


def kinds_running(precision: str) -> list[str]:
    """The runtimes that run a precision besides the single one.

    >>> kinds_running("int8")
    ['onnxruntime', 'openvino']
    """
    return sorted(kind for kind, precisions in PRECISIONS.items() if precision in precisions)


#: Runtime kinds whose kernels skip weights of zero: their tables have rows at several densities.
SKIPPING_ZEROS = frozenset({"mnn-sparse"})


def get_runtime(kind: str) -> Runtime:
    """The runtime of a profile.

    Raises:
        RuntimeUnavailableError: If there is no such runtime, or the package or GPU that it needs is missing.
    """
    if kind not in REGISTRY:
        raise RuntimeUnavailableError(
            f"no runtime {kind!r} on this machine",
            expected=f"one of {', '.join(sorted(REGISTRY))}",
            got=kind,
            hint="measure on a machine that has it, or use a profile of one of these",
        )
    module, name, package, extra = REGISTRY[kind]
    try:
        runtime: Runtime = getattr(importlib.import_module(module), name)()
    except ImportError as error:
        besides = ", which fetches it from NVIDIA; a GPU is needed besides" if kind in ON_GPU else ""
        raise RuntimeUnavailableError(
            f"the runtime {kind} needs the package {package}", hint=f"pip install '{extra}'{besides}"
        ) from error
    return runtime
