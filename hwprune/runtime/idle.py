"""What a kernel with next to nothing to do takes in a network: the runtime's own work between two kernels."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwprune.device.profile import RuntimeSpec
from hwprune.runtime.base import runtime_for
from hwprune.runtime.export import OPSET
from hwprune.runtime.operator_models import IR_VERSION
from hwprune.runtime.recording import IDLE
from hwprune.runtime.stopwatch import sample
from hwprune.runtime.timing import as_run, once, random_feed
from hwprune.runtime.undisturbed import undisturbed

#: Idle kernels of the two networks whose difference counts, and how often each network runs.
_SHORT, _LONG, _RUNS = 8, 48, 400


@lru_cache(maxsize=16)
def idle_us(spec: RuntimeSpec) -> float:
    """What :data:`~hwprune.runtime.recording.IDLE` takes in a network, in microseconds, told by two chains.

    Nothing records kernels here: whole networks are timed, a longer and a shorter one. Whatever a runtime
    does once a run is in both. Measured once for each process.

    Args:
        spec: Runtime, precision, threads and batch.

    Raises:
        RuntimeUnavailableError: If the runtime is missing or refuses such a network.
    """
    runtime = runtime_for(spec)
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
        paths = {count: Path(folder) / f"{count}.onnx" for count in (_SHORT, _LONG)}
        for count, path in paths.items():
            path.write_bytes(idle_chain(count, spec.batch))
        with as_run({str(count): path for count, path in paths.items()}, spec) as files:
            sessions = {name: runtime.open(file, spec) for name, file in files.items()}
        samples = sample(
            {name: [once(each, random_feed(each.inputs, spec.batch))] for name, each in sessions.items()},
            _RUNS,
        )
    long_us, short_us = (undisturbed(samples[str(count)]) for count in (_LONG, _SHORT))
    return max(long_us - short_us, 0.0) / (_LONG - _SHORT)


def idle_chain(count: int, batch: int) -> bytes:
    """An ONNX file of so many idle kernels, one after the other: convolutions with a ReLU.

    Args:
        count: How many, one at least.
        batch: Images of a run.
    """
    generator = np.random.default_rng(0)
    shape = [batch, IDLE.in_channels, IDLE.height, IDLE.width]
    nodes, weights = [], []
    for index in range(count):
        sizes = {f"w{index}": (IDLE.out_channels, IDLE.in_channels, 1, 1), f"b{index}": (IDLE.out_channels,)}
        # With a bias values neither fade into denormal numbers nor grow, however long the chain.
        weights += [
            numpy_helper.from_array((0.3 * generator.standard_normal(size)).astype(np.float32), name)
            for name, size in sizes.items()
        ]
        nodes.append(helper.make_node("Conv", [f"y{index}", *sizes], [f"z{index}"], name=f"conv{index}"))
        nodes.append(helper.make_node("Relu", [f"z{index}"], [f"y{index + 1}"], name=f"relu{index}"))
    graph = helper.make_graph(
        nodes,
        "idle",
        [helper.make_tensor_value_info("y0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"y{count}", TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content
