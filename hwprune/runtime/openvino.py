"""OpenVINO on the CPU."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from hwprune.device.profile import RuntimeSpec
from hwprune.errors import RuntimeUnavailableError
from hwprune.runtime.base import Array, Effort, InputInfo, Samples

_DEVICE = "CPU"
_EXECUTED = "EXECUTED"
#: How the counters call a kernel that another one has absorbed.
_FUSED = "undef"
#: Blocks of runs with a network compiled anew, and what stands for a kernel too short to be counted, in us.
_BLOCKS, _LEAST = 4, 0.5
#: What the name of a kernel ends with into which the bias was fused, and then the scale of an 8-bit product.
_FUSED_SUFFIX = re.compile(r"/WithoutBiases(/Dequantization\w+)?$")


class OpenVinoSession:
    """A model file read by OpenVINO, compiled for every shape that it is run with.

    Compiled for fixed shapes OpenVINO plans memory and layouts ahead, as it is deployed for latency.
    """

    def __init__(self, model: Any, options: Mapping[str, Any], where: object) -> None:
        self._model, self._options, self._where = model, dict(options), where
        self._requests: dict[tuple[tuple[int, ...], ...], Any] = {}
        self.inputs: tuple[InputInfo, ...] = tuple(
            InputInfo(
                item.any_name,
                tuple(size.get_length() if size.is_static else None for size in item.partial_shape),
                np.dtype(item.element_type.to_dtype()),
            )
            for item in model.inputs
        )

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        """Runs the model once.

        Raises:
            RuntimeUnavailableError: If OpenVINO cannot.
        """
        request = self._request(tuple(feed[item.name].shape for item in self.inputs))
        results = _infer(request, [feed[item.name] for item in self.inputs], self._where)
        return [np.array(results[index]) for index in range(len(results))]

    def _request(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        if shapes not in self._requests:
            model = self._model.clone()
            names = (item.name for item in self.inputs)
            try:
                model.reshape(dict(zip(names, map(list, shapes), strict=True)))
            except Exception as error:  # the runtime raises a dozen unrelated types
                raise RuntimeUnavailableError(
                    "OpenVINO refuses the sizes of the inputs", where=self._where, got=_told(error)
                ) from error
            self._requests[shapes] = _compile(model, self._options, self._where).create_infer_request()
        return self._requests[shapes]


class OpenVino:
    """The CPU plugin of OpenVINO, one inference at a time."""

    counts_recording = False

    def version(self) -> str:
        """The installed version."""
        return str(openvino.__version__).partition("-")[0]

    def open(self, path: Path, spec: RuntimeSpec) -> OpenVinoSession:
        """Reads an ONNX file or an intermediate representation.

        Raises:
            RuntimeUnavailableError: If OpenVINO refuses it.
        """
        return OpenVinoSession(_read(str(path), None, path), _options(spec), path)

    def operator_samples(
        self, model: bytes, spec: RuntimeSpec, feed: Mapping[str, Array], effort: Effort
    ) -> Samples:
        """Kernel durations from OpenVINO's own counters, by the name of the node.

        The counters hold the mean since the network was compiled, so it is compiled anew for each of a few
        blocks of runs, and a sample is the mean of one block without its warm-up.
        """
        where = "an operator model"
        network = _read(model, b"", where)
        samples: Samples = {}
        for _ in range(_BLOCKS):
            options = {**_options(spec), "PERF_COUNT": True}
            request = _compile(network, options, where).create_infer_request()
            inputs = [feed[item.any_name] for item in request.model_inputs]
            start = time.perf_counter()
            for _ in range(effort.warmup_runs):
                _infer(request, inputs, where)
            per_run = (time.perf_counter() - start) / effort.warmup_runs
            runs = max(effort.runs(per_run) // _BLOCKS, effort.warmup_runs)
            before = _kernel_means(request)
            for _ in range(runs):
                _infer(request, inputs, where)
            every = runs + effort.warmup_runs
            for kernel, mean in _kernel_means(request).items():
                total = mean * every - before.get(kernel, mean) * effort.warmup_runs
                samples.setdefault(kernel, []).append(max(total / runs, _LEAST))
        return {kernel: means for kernel, means in samples.items() if len(means) == _BLOCKS}


def _kernel_means(request: Any) -> dict[str, float]:
    """Mean duration of every kernel in microseconds, by the name of its node.

    Runs are cut to whole microseconds and so is their mean: half of one is added for each. A kernel that
    takes less than one is said not to have run; one that was fused into another is left out.
    """
    return {
        _FUSED_SUFFIX.sub("", kernel.node_name): round(kernel.real_time.total_seconds() * 1e6) + 1.0
        if kernel.status.name == _EXECUTED
        else _LEAST
        for kernel in request.profiling_info
        if kernel.exec_type != _FUSED
    }


def _options(spec: RuntimeSpec) -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": spec.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }


@cache
def _core() -> Any:
    """The one core of this process.

    A core's plugin for processors moves the stack that signals are handled on, and puts the one before in its
    place when it goes: of two cores the first to go leaves the memory of the other, and Ctrl-C crashes.
    """
    return openvino.Core()


def _read(source: str | bytes, weights: bytes | None, where: object) -> Any:
    try:
        return _core().read_model(source, *([] if weights is None else [weights]))
    except Exception as error:  # the runtime raises a dozen unrelated types
        raise RuntimeUnavailableError("OpenVINO refuses the model", where=where, got=_told(error)) from error


def _compile(model: Any, options: Mapping[str, Any], where: object) -> Any:
    try:
        return _core().compile_model(model, _DEVICE, dict(options))
    except Exception as error:  # likewise
        raise RuntimeUnavailableError(
            "OpenVINO cannot compile the model", where=where, got=_told(error)
        ) from error


def _infer(request: Any, inputs: Sequence[Array], where: object) -> Any:
    try:
        return request.infer(inputs)
    except Exception as error:  # likewise
        raise RuntimeUnavailableError(
            "OpenVINO cannot run the model", where=where, got=_told(error)
        ) from error


def _told(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
