"""TensorRT and TensorRT-RTX on a GPU of NVIDIA, which have the same interface."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwprune.device.profile import RuntimeSpec
from hwprune.errors import RuntimeUnavailableError
from hwprune.runtime.base import Array, Effort, InputInfo, Samples
from hwprune.runtime.engines import (
    Ranges,
    branch_of,
    build_engine,
    cache_folder,
    engine_name,
    engine_of,
    keep,
)
from hwprune.runtime.onnx_values import read_values

ENDING = ".engine"
#: Numbers of images that an exported engine takes, where the network leaves them open.
EXPORTED = Ranges(least=1, usual=1, most=32)
#: The library's name of an element type to that of PyTorch.
_TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}


class _Loaded:
    """An engine on the GPU with memory for inputs of certain shapes and for the outputs.

    Args:
        library: The module ``tensorrt`` or ``tensorrt_rtx``.
        engine: Loaded.
        shapes: Of the inputs, by their names.
        where: The file, for errors.
    """

    def __init__(
        self, library: Any, engine: Any, shapes: Mapping[str, tuple[int, ...]], where: object
    ) -> None:
        self.context, self._where = engine.create_execution_context(), where
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._tensors: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, shape):
                raise RuntimeUnavailableError(
                    "the engine was built for other shapes", where=f"{where}, input {name}", got=shape
                )
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for name in names:
            kind = _TYPES[engine.get_tensor_dtype(name).name]
            tensor = torch.empty(tuple(self.context.get_tensor_shape(name)), dtype=kind, device="cuda")
            self.context.set_tensor_address(name, tensor.data_ptr())
            self._tensors[name] = tensor
        self._outputs = [name for name in names if not _is_input(library, engine, name)]

    def feed(self, feed: Mapping[str, Array]) -> None:
        """Copies the inputs to the GPU."""
        for name, values in feed.items():
            self._tensors[name].copy_(torch.from_numpy(np.array(values)))
        torch.cuda.synchronize()

    def execute(self) -> float:
        """Runs the engine on what was fed: microseconds by the GPU's own clock."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(self._stream)
        started = self.context.execute_async_v3(self._stream.cuda_stream)
        end.record(self._stream)
        end.synchronize()
        if not started:
            raise RuntimeUnavailableError("TensorRT cannot run the model", where=self._where)
        return float(begin.elapsed_time(end)) * 1e3

    def outputs(self) -> list[Array]:
        """What the last run computed."""
        return [self._tensors[name].cpu().numpy() for name in self._outputs]


class TensorRtSession:
    """A network on the GPU, with memory and, where it comes from an ONNX file, an engine for every shape.

    Args:
        library: The module ``tensorrt`` or ``tensorrt_rtx``.
        engine_for: From a number of images to an engine for it.
        inputs: In the order of the file.
        where: The file, for errors.
    """

    def __init__(
        self, library: Any, engine_for: Callable[[int], Any], inputs: tuple[InputInfo, ...], where: object
    ) -> None:
        self.inputs = inputs
        self._library, self._engine_for, self._where = library, engine_for, where
        self._loaded: dict[tuple[tuple[int, ...], ...], _Loaded] = {}

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        """Runs the model once.

        Raises:
            RuntimeUnavailableError: If TensorRT refuses to, or the engine was built for other shapes.
        """
        loaded = self._for(feed)
        loaded.feed(feed)
        loaded.execute()
        return loaded.outputs()

    def clocked(self, feed: Mapping[str, Array]) -> Callable[[], float]:
        """Puts the inputs on the GPU; returns what runs the model once and tells its microseconds there."""
        loaded = self._for(feed)
        loaded.feed(feed)
        return loaded.execute

    def _for(self, feed: Mapping[str, Array]) -> _Loaded:
        shapes = {item.name: feed[item.name].shape for item in self.inputs}
        key = tuple(shapes.values())
        if key not in self._loaded:
            engine = self._engine_for(key[0][0] if key and key[0] else 1)
            self._loaded[key] = _Loaded(self._library, engine, shapes, self._where)
        return self._loaded[key]


class TensorRt:
    """Engines of TensorRT.

    Args:
        package: The module, ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        ImportError: If the package is missing.
        RuntimeUnavailableError: If there is no GPU.
    """

    counts_recording = False

    def __init__(self, package: str = "tensorrt") -> None:
        self._library = importlib.import_module(package)
        self._package = package
        if not torch.cuda.is_available():
            raise RuntimeUnavailableError(
                f"the runtime {package.replace('_', '-')} needs a GPU of NVIDIA",
                expected="torch.cuda.is_available()",
                got=f"none that PyTorch {torch.__version__} sees",
                hint="install the driver and a PyTorch with CUDA; engines are built where they run",
            )

    def version(self) -> str:
        """The installed version."""
        return str(self._library.__version__)

    def open(self, path: Path, spec: RuntimeSpec) -> TensorRtSession:
        """Loads an engine, or reads an ONNX file, whose engines are built when it is first run and kept.

        Raises:
            RuntimeUnavailableError: If TensorRT refuses it.
        """
        if path.suffix == ENDING:
            engine = engine_of(self._library, path.read_bytes(), path)
            return TensorRtSession(self._library, lambda _: engine, _inputs(self._library, engine), path)
        model, inputs = path.read_bytes(), read_values(path).inputs

        def engine_for(batch: int) -> Any:
            kept = self._cache() / engine_name(model, Ranges.only(batch))
            if not kept.is_file():
                keep(kept, self._build(model, inputs, Ranges.only(batch), path))
            return engine_of(self._library, kept.read_bytes(), path)

        return TensorRtSession(self._library, engine_for, inputs, path)

    def convert(self, source: Path, target: Path) -> tuple[Path, ...]:
        """Writes an ONNX file as an engine for this GPU.

        Raises:
            RuntimeUnavailableError: If TensorRT refuses it.
        """
        target.write_bytes(self._build(source.read_bytes(), read_values(source).inputs, EXPORTED, source))
        return (target,)

    def operator_samples(
        self, model: bytes, spec: RuntimeSpec, feed: Mapping[str, Array], effort: Effort
    ) -> Samples:
        """Durations of layers from TensorRT's own profiler, which reads the GPU's clock around each."""
        where = "an operator model"
        engine = engine_of(self._library, self._build(model, (), Ranges.only(spec.batch), where), where)
        loaded = _Loaded(self._library, engine, {name: values.shape for name, values in feed.items()}, where)
        loaded.feed(feed)
        start = time.perf_counter()
        for _ in range(effort.warmup_runs):
            loaded.execute()
        runs = effort.runs((time.perf_counter() - start) / effort.warmup_runs)
        recorder = _recorder(self._library)
        loaded.context.profiler = recorder
        samples: Samples = {}
        for _ in range(runs):
            recorder.layers.clear()
            loaded.execute()
            for position, (layer, duration) in enumerate(recorder.layers):
                branch = branch_of(layer)
                name = f"op{branch}_{position}" if branch is not None else layer
                samples.setdefault(name, []).append(duration)
        return samples

    def _build(self, model: bytes, inputs: Sequence[InputInfo], ranges: Ranges, where: object) -> bytes:
        timings = self._cache() / "timing.cache" if self._package == "tensorrt" else None
        return build_engine(self._library, model, inputs, ranges, where, timings)

    def _cache(self) -> Path:
        """Where engines for this GPU and version are kept."""
        gpu = torch.cuda.get_device_name()
        return cache_folder({"package": self._package, "version": self.version(), "gpu": gpu})


class TensorRtRtx(TensorRt):
    """Engines of TensorRT for RTX, which are finished when the GPU first loads them."""

    def __init__(self) -> None:
        super().__init__("tensorrt_rtx")


def _inputs(library: Any, engine: Any) -> tuple[InputInfo, ...]:
    """Inputs of a loaded engine."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return tuple(
        InputInfo(
            name,
            tuple(None if size < 0 else size for size in engine.get_tensor_shape(name)),
            torch.empty(0, dtype=_TYPES[engine.get_tensor_dtype(name).name]).numpy().dtype,
        )
        for name in names
        if _is_input(library, engine, name)
    )


def _is_input(library: Any, engine: Any, name: str) -> bool:
    return bool(engine.get_tensor_mode(name) == library.TensorIOMode.INPUT)


def _recorder(library: Any) -> Any:
    """What TensorRT tells the duration of every layer to."""

    class Recorder(library.IProfiler):  # type: ignore[misc]
        """Keeps name and microseconds of every layer in the order in which they are told."""

        def __init__(self) -> None:
            library.IProfiler.__init__(self)
            self.layers: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            """Called by the library after a run, once for every layer."""
            self.layers.append((layer_name, ms * 1e3))

    return Recorder()
