"""What is known of a network once it is exported: that it is the masked one, how good and how fast it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hwprune.device.profile import DeviceProfile, RuntimeSpec
from hwprune.errors import GraphError, VerificationError
from hwprune.graph.record import ExampleInputs, evaluation_mode
from hwprune.graph.trace import trace_operators
from hwprune.operators import Operator, multiply_accumulates
from hwprune.quantization import accuracy_in_runtime, quantize_on
from hwprune.runtime.base import get_runtime
from hwprune.runtime.export import at_batch
from hwprune.runtime.formats import tolerance_of
from hwprune.runtime.half import to_half
from hwprune.runtime.timing import Timing
from hwprune.surgery.outputs import compare, outputs_of, rounding_of
from hwprune.workloads import Dataset, accuracy

#: Largest difference allowed between the exported slim network and the masked one, as a fraction of the
#: largest value of an output: another runtime sums in another order.
RUNTIME_TOLERANCE = 1e-4
#: Where PyTorch's own single precision is further off, so may the runtime's be, by this factor.
OWN_ROUNDING = 10.0


def verify_exported(masked: nn.Module, path: Path, inputs: ExampleInputs, profile: DeviceProfile) -> float:
    """Largest absolute difference between an exported slim network and the masked one.

    Args:
        masked: The full-width network.
        path: The exported slim network, in single precision whatever the device runs.
        inputs: Inputs to compare on, in the order in which the file takes them.
        profile: Names the runtime.

    Raises:
        GraphError: If the file takes another number of inputs.
        VerificationError: If they differ by more than :data:`RUNTIME_TOLERANCE`, and by more than rounding in
            the runtime and PyTorch's own single precision make plausible.
    """
    spec = profile.runtime.model_copy(update={"precision": "fp32"})
    session = get_runtime(spec.kind).open(path, spec)
    first = session.inputs[0].shape if session.inputs else ()
    if first and first[0] is not None:
        inputs = at_batch(inputs, first[0])
    given = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if len(given) != len(session.inputs):
        raise GraphError(
            "the exported network takes other inputs than the network",
            where=path.name,
            expected=f"{len(given)} tensors",
            got=", ".join(item.name for item in session.inputs) or "none",
            hint="an input that nothing reads does not come into the file: leave it out",
        )
    feed = {item.name: tensor.numpy() for item, tensor in zip(session.inputs, given, strict=True)}
    with evaluation_mode(masked):
        expected = outputs_of(masked, inputs)
        actual = [torch.from_numpy(array) for array in session.run(feed)]
        difference = compare(expected, actual)
        allowed = max(RUNTIME_TOLERANCE, tolerance_of(path, spec.kind))
        if difference.relative > allowed:
            allowed = max(allowed, OWN_ROUNDING * rounding_of(masked, inputs))
    if difference.relative > allowed:
        raise VerificationError(
            "the exported network does not compute what the masked one computes",
            where=f"runtime {profile.runtime.kind}",
            expected=f"a difference of at most {allowed:.2g} of the largest output",
            got=f"{difference.absolute:.3g} at a largest output of {difference.scale:.3g}",
            hint="nothing was written; report the network to the project",
        )
    return difference.absolute


def as_deployed(paths: Mapping[str, Path], spec: RuntimeSpec, dataset: Dataset) -> dict[str, Path]:
    """Exported networks as the device runs them: quantised on training images, or in half precision.

    Args:
        paths: Name to file in single precision.
        spec: Says the precision.
        dataset: The data.

    Returns:
        Name to file: the same one, or the converted one beside it.

    Raises:
        RuntimeUnavailableError: If a network cannot be converted.
    """
    if spec.precision == "fp16":
        halves = {name: path.with_suffix(".fp16.onnx") for name, path in paths.items()}
        for name, path in paths.items():
            to_half(path, halves[name])
        return halves
    if spec.precision != "int8":
        return dict(paths)
    deployed = {name: path.with_suffix(".int8.onnx") for name, path in paths.items()}
    for name, path in paths.items():
        quantize_on(dataset, path, deployed[name])
    return deployed


def describe_network(
    model: nn.Module, path: Path, timing: Timing, dataset: Dataset, spec: RuntimeSpec
) -> dict[str, Any]:
    """Accuracy, latency and size of one network, as the report carries them.

    Args:
        model: In PyTorch.
        path: What the device runs.
        timing: Of that file.
        dataset: The data.
        spec: The runtime. Where it runs 8 bits the accuracy is that of the file in the runtime, and that of
            PyTorch stands beside it.
    """
    operators: tuple[Operator, ...] = trace_operators(model, dataset.test_images[:1])
    in_single_precision = accuracy(model, dataset.test_images, dataset.test_labels)
    scores = {"accuracy": in_single_precision}
    if spec.precision == "int8":
        scores = {
            "accuracy": accuracy_in_runtime(path, spec, dataset),
            "accuracy_fp32": in_single_precision,
        }
    return {
        **scores,
        "latency_us": timing.summary(),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "macs": sum(multiply_accumulates(operator) for operator in operators),
        "file_bytes": path.stat().st_size,
    }
