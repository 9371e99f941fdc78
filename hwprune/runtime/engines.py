"""TensorRT engines: how they are built from ONNX files and kept, and what their layers compute."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from hwprune.errors import RuntimeUnavailableError
from hwprune.files import replacing
from hwprune.runtime.base import InputInfo, fixed_shape

#: A node of an operator model in the name of a layer, which lists all nodes that it computes.
_NODE = re.compile(r"\bop(\d+)_\d+")
#: Layers that copy from one memory layout into another, named after what reads the copy.
_COPY = "Reformatting"


@dataclass(frozen=True, slots=True)
class Ranges:
    """Numbers of images that an engine takes where the file leaves them open.

    Attributes:
        least: At least.
        usual: What its kernels are chosen for.
        most: At most.
    """

    least: int
    usual: int
    most: int

    @classmethod
    def only(cls, batch: int) -> Ranges:
        """One number alone, as networks are deployed for latency."""
        return cls(batch, batch, batch)

    def shapes(self, inputs: Sequence[InputInfo]) -> dict[str, tuple[tuple[int, ...], ...]]:
        """The least, usual and largest shape of every input that has an open size.

        Args:
            inputs: Of the file.

        Raises:
            InputError: If another size than the number of images is open.
        """
        batches = (self.least, self.usual, self.most)
        return {
            item.name: tuple(fixed_shape(item.name, item.shape, batch) for batch in batches)
            for item in inputs
            if None in item.shape
        }


def build_engine(
    library: Any, model: bytes, inputs: Sequence[InputInfo], ranges: Ranges, where: object, cache: Path | None
) -> bytes:
    """Builds an engine that computes every value in the precision that the file gives it.

    Half precision and 8 bits are thus matters of the file: TensorRT 11 and TensorRT-RTX have no flags for
    them any more. Single precision is that of IEEE 754, not the shortened one of tensor cores. Weights of
    which two of four neighbours along the inputs are zero may run in the kernels that skip them; TensorRT
    looks at the weights, and takes those kernels where they are faster.

    Args:
        library: The module ``tensorrt`` or ``tensorrt_rtx``.
        model: An ONNX file.
        inputs: Its inputs.
        ranges: Numbers of images that it is built for.
        where: What the model is, for errors.
        cache: The file of the timing cache, which spares the next build timing the same kernels; ``None``
            for TensorRT-RTX, which times none.

    Returns:
        The engine, serialised.

    Raises:
        InputError: If another size of an input than the number of images is open.
        RuntimeUnavailableError: If the library refuses the model.
    """
    listener = _listener(library)
    with listener.listening() as told:
        builder = library.Builder(listener)
        network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = library.OnnxParser(network, listener)
        if not parser.parse(model):
            errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise _refused("refuses the model", where, errors or told)
        config = builder.create_builder_config()
        config.set_flag(library.BuilderFlag.SPARSE_WEIGHTS)
        config.clear_flag(library.BuilderFlag.TF32)
        config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
        open_inputs = ranges.shapes(inputs)
        if open_inputs:
            profile = builder.create_optimization_profile()
            for name, shapes in open_inputs.items():
                profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
        with _timings_kept(config, cache):
            engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise _refused("cannot build an engine of the model", where, told)
        return bytes(engine)


@contextlib.contextmanager
def _timings_kept(config: Any, path: Path | None) -> Iterator[None]:
    """Lets a build know what earlier ones timed, and keeps what it times itself."""
    if path is None:
        yield
        return
    kept = path.read_bytes() if path.is_file() else b""
    timings = config.create_timing_cache(kept) or config.create_timing_cache(b"")
    config.set_timing_cache(timings, False)  # a cache of another device or version is left alone
    yield
    keep(path, bytes(timings.serialize()))


def keep(path: Path, content: bytes) -> None:
    """Puts a file into the cache; whoever is interrupted leaves the old one or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def cache_folder(device: Mapping[str, str]) -> Path:
    """Where engines and timings are kept that one device and version understand.

    Args:
        device: What they depend on, such as the version and the GPU.
    """
    return user_cache_path("hwprune") / "engines" / _digest(json.dumps(device, sort_keys=True).encode())


def engine_name(model: bytes, ranges: Ranges) -> str:
    """The name of an engine in its folder: another for any other file or number of images."""
    return f"{_digest(model)}-{ranges.least}-{ranges.usual}-{ranges.most}.engine"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def branch_of(layer: str) -> int | None:
    """Which branch of an operator model a layer of its engine computes.

    Args:
        layer: Its name.

    Returns:
        The branch; ``None`` for copies, and for layers that compute several branches or none.

    >>> branch_of("op3_0 + op3_1"), branch_of("PWN(op12_0)"), branch_of("{ForeignNode[op2_0...op2_5]}")
    (3, 12, 2)
    >>> branch_of("Reformatting CopyNode for Input Tensor 0 to op3_0"), branch_of("op1_0 || op2_0")
    (None, None)
    """
    branches = {int(match[1]) for match in _NODE.finditer(layer)}
    return branches.pop() if len(branches) == 1 and not layer.startswith(_COPY) else None


@lru_cache(maxsize=2)
def _listener(library: Any) -> Any:
    """Hears what a library has to say, instead of the terminal; a process gives it one listener."""

    class Listener(library.ILogger):  # type: ignore[misc]
        """Keeps the errors that are told while somebody listens."""

        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by the library with every message."""
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR):
                self._errors.append(message)

        @contextlib.contextmanager
        def listening(self) -> Iterator[list[str]]:
            """Yields the errors from here on."""
            self._errors = []
            yield self._errors

    return Listener()


def engine_of(library: Any, content: bytes, where: object) -> Any:
    """Loads a serialised engine onto the GPU.

    Raises:
        RuntimeUnavailableError: If it was built for another device or version.
    """
    listener = _listener(library)
    with listener.listening() as told:
        engine = library.Runtime(listener).deserialize_cuda_engine(content)
        if engine is None:
            raise _refused("refuses the model", where, told)
    return engine


def _refused(what: str, where: object, errors: Sequence[str]) -> RuntimeUnavailableError:
    lines = [line for error in errors for line in error.strip().splitlines() if line.strip()]
    return RuntimeUnavailableError(f"TensorRT {what}", where=where, got=lines[0] if lines else None)
