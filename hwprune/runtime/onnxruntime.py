"""ONNX Runtime on the CPU, or on what its other execution providers run."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from hwprune.device.profile import RuntimeSpec
from hwprune.device.runtimes import CPU_PROVIDER, GPU_PROVIDERS
from hwprune.errors import RuntimeUnavailableError
from hwprune.runtime.base import Array, Effort, InputInfo, Samples

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
#: What the layout optimiser appends to the name of a value that a kernel writes in blocked layout.
_BLOCKED_SUFFIX = "_nchwc"
_KERNEL_SUFFIX = "_kernel_time"
_ERRORS_ONLY = 3
#: Providers that run a part of the operators, and who runs the rest.
_REST = {"TensorrtExecutionProvider": "CUDAExecutionProvider"}


class OnnxRuntimeSession:
    """An ONNX file loaded into ONNX Runtime.

    Args:
        session: The session of the runtime.
        where: The file, for errors.

    Raises:
        RuntimeUnavailableError: If the file has an input of a type that is not fed here.
    """

    def __init__(self, session: Any, where: object) -> None:
        self._session, self._where = session, where
        self.inputs: tuple[InputInfo, ...] = tuple(
            InputInfo(
                item.name,
                tuple(size if isinstance(size, int) else None for size in item.shape),
                _dtype_of(item, where),
            )
            for item in session.get_inputs()
        )

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        """Runs the model once.

        Raises:
            RuntimeUnavailableError: If ONNX Runtime refuses to.
        """
        try:
            outputs: Sequence[Array] = self._session.run(None, dict(feed))
        except Exception as error:  # the runtime raises a dozen unrelated types
            raise _refused("ONNX Runtime cannot run the model", self._where, error) from error
        return outputs


class OnnxRuntime:
    """ONNX Runtime with all graph optimisations, on the provider of the profile or else on the CPU."""

    counts_recording = True

    def version(self) -> str:
        """The installed version."""
        return str(onnxruntime.__version__)

    def check(self, spec: RuntimeSpec) -> None:
        """Raises where the installed package does not have the provider of a profile.

        Raises:
            RuntimeUnavailableError: In that case.
        """
        wanted, available = spec.provider or CPU_PROVIDER, onnxruntime.get_available_providers()
        if wanted not in available:
            on_gpu = wanted in GPU_PROVIDERS
            raise RuntimeUnavailableError(
                f"ONNX Runtime has no {wanted} here",
                where="runtime.provider of the profile",
                expected=f"one of {', '.join(available)}",
                got=wanted,
                hint="pip uninstall onnxruntime, then pip install onnxruntime-gpu" if on_gpu else None,
            )

    def open(self, path: Path, spec: RuntimeSpec) -> OnnxRuntimeSession:
        """Loads an ONNX file.

        Raises:
            RuntimeUnavailableError: If ONNX Runtime refuses it, or does not run it on the profile's provider.
        """
        self.check(spec)
        return OnnxRuntimeSession(_load(str(path), self._options(spec), spec, where=path), path)

    def operator_samples(
        self, model: bytes, spec: RuntimeSpec, feed: Mapping[str, Array], effort: Effort
    ) -> Samples:
        """Kernel durations from ONNX Runtime's own profiler, by the value that each kernel writes.

        The profiler's own work falls into the durations. They are whole microseconds, cut off; half of one
        is added, so that they are right on average.

        Raises:
            RuntimeUnavailableError: If the provider runs them on a GPU: released builds of ONNX Runtime tell
                how long the processor took to start a kernel, not how long the GPU took to run it.
        """
        if spec.provider in GPU_PROVIDERS:
            raise RuntimeUnavailableError(
                "ONNX Runtime tells no times of single kernels on a GPU",
                where="runtime.provider of the profile",
                expected="a provider on the CPU, or the runtime tensorrt",
                got=spec.provider,
                hint="prune to a number of groups (--keep); whole networks are timed on this device",
            )
        options = self._options(spec)
        with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            loaded = _load(model, options, spec, where="an operator model")
            session = OnnxRuntimeSession(loaded, "an operator model")
            start = time.perf_counter()
            for _ in range(effort.warmup_runs):
                session.run(feed)
            runs = effort.runs((time.perf_counter() - start) / effort.warmup_runs)
            for _ in range(runs):
                session.run(feed)
            lines = Path(loaded.end_profiling()).read_text(encoding="utf-8").splitlines()
        if not lines or lines[-1].strip() != "]":
            raise RuntimeUnavailableError(
                "ONNX Runtime's record of its kernels was not written to the end",
                where=tempfile.gettempdir(),
                expected="a JSON array",
                got=f"{len(lines)} lines, the last of them cut off",
                hint="make room there, or name another folder for temporary files in TMPDIR",
            )
        samples: Samples = {}
        for event in map(_event, filter(_is_kernel, lines)):
            value = event["name"].removesuffix(_KERNEL_SUFFIX).removesuffix(_BLOCKED_SUFFIX)
            samples.setdefault(value, []).append(event["dur"] + 0.5)
        return {kernel: durations[-runs:] for kernel, durations in samples.items()}

    @staticmethod
    def _options(spec: RuntimeSpec) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = spec.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        return options


def _is_kernel(line: str) -> bool:
    return f'{_KERNEL_SUFFIX}"' in line


def _event(line: str) -> dict[str, Any]:
    """One event of the profiler without its arguments, which would take a third of a build to read."""
    event: dict[str, Any] = json.loads(line.partition(',"args"')[0].rstrip(",") + "}")
    return event


def _load(source: str | bytes, options: Any, spec: RuntimeSpec, *, where: object) -> Any:
    wanted = spec.provider or CPU_PROVIDER
    providers = [wanted, *([_REST[wanted]] if wanted in _REST else [])]
    try:
        session = onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # likewise
        raise _refused("ONNX Runtime refuses the model", where, error) from error
    if session.get_providers()[0] != wanted:
        # It falls back to the CPU where a library of the provider cannot be loaded.
        raise RuntimeUnavailableError(
            f"ONNX Runtime cannot use its {wanted}",
            where=where,
            expected=wanted,
            got=", ".join(session.get_providers()),
            hint="install the CUDA and cuDNN that onnxruntime-gpu was built for, and the driver",
        )
    return session


def _dtype_of(item: Any, where: object) -> np.dtype[Any]:
    if item.type not in _DTYPES:
        raise RuntimeUnavailableError(
            "ONNX Runtime is fed no such input here",
            where=f"{where}, input {item.name}",
            expected=f"one of {', '.join(_DTYPES)}",
            got=item.type,
        )
    return np.dtype(_DTYPES[item.type])


def _refused(what: str, where: object, error: Exception) -> RuntimeUnavailableError:
    lines = str(error).strip().splitlines()
    return RuntimeUnavailableError(what, where=where, got=lines[0] if lines else type(error).__name__)
