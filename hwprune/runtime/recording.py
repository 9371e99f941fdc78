"""What timing single kernels costs itself, measured and taken off."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from hwprune.device.profile import RuntimeSpec
from hwprune.operators import Operator
from hwprune.runtime.base import Array, Effort
from hwprune.runtime.operator_models import make_operator_model
from hwprune.runtime.undisturbed import undisturbed_runs

#: What stands for a kernel that takes no longer than recording it, in microseconds.
LEAST = 0.1
#: Kernels with next to nothing to do in the file that the cost is measured on.
_KERNELS = 16
_EFFORT = Effort(seconds=0.2, least_runs=500, most_runs=2000, warmup_runs=50)
#: Runtime and threads to the cost, measured once per process.
_COST: dict[tuple[str, int], float] = {}

Samples = dict[str, list[float]]
#: Times the kernels of a model as it is: model, spec, feed and effort to durations in microseconds.
Record = Callable[[bytes, RuntimeSpec, Mapping[str, Array], Effort], Samples]


def without_recording(
    record: Record, model: bytes, spec: RuntimeSpec, feed: Mapping[str, Array], effort: Effort
) -> Samples:
    """Durations of kernels without what recording them takes: that of a convolution of one pixel.

    Args:
        record: How the runtime times kernels.
        model: An ONNX file.
        spec: Runtime and threads.
        feed: Its inputs.
        effort: How long to run it.

    Returns:
        Durations in microseconds by the kernel's name, all at least :data:`LEAST`.
    """
    samples = record(model, spec, feed, effort)
    cost = _recording_cost(record, spec)
    return {
        kernel: [max(duration - cost, LEAST) for duration in durations]
        for kernel, durations in samples.items()
    }


def _recording_cost(record: Record, spec: RuntimeSpec) -> float:
    key = (spec.kind, spec.threads)
    if key not in _COST:
        model = make_operator_model([Operator("conv", 8, 8, 1, 1, 1, 1)] * _KERNELS, batch=1)
        samples = record(model.content, spec, model.feed, _EFFORT)
        durations = [values for kernel, values in samples.items() if model.operator_of(kernel) is not None]
        _COST[key] = float(undisturbed_runs(np.array(durations)).mean())
    return _COST[key]
