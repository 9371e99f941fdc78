"""Single operators as ONNX branches, many to a file, so that their kernels can be timed side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hwprune.errors import MissingRowError
from hwprune.operators import Operator
from hwprune.runtime import operator_branches
from hwprune.runtime.base import Array
from hwprune.runtime.export import OPSET
from hwprune.runtime.operator_branches import Branch as _Branch
from hwprune.runtime.operator_branches import Builder
from hwprune.runtime.operator_branches import map_shape as _map_shape

#: File format version that every current runtime reads.
IR_VERSION = 10


@dataclass(frozen=True, slots=True, eq=False)
class OperatorModel:
    """An ONNX file with one independent branch per operator.

    Attributes:
        content: The serialised file.
        feed: Random inputs.
        count: Number of operators.
    """

    content: bytes
    feed: dict[str, Array]
    count: int

    @staticmethod
    def operator_of(kernel: str) -> int | None:
        """Position of the operator that a kernel belongs to, from the kernel's name.

        Runtimes name a kernel after its node or after the value that it writes; kernels that feed or
        unpack a branch belong to none.

        >>> OperatorModel.operator_of("fused op12_0"), OperatorModel.operator_of("helper3")
        (12, None)
        >>> OperatorModel.operator_of("op3_1/QuickGeluFusion/")
        3
        """
        match = _KERNEL.fullmatch(kernel)
        return int(match[1]) if match else None


#: Kernels of a branch: its nodes are called ``op``, its values ``z`` (bare), ``s`` (summed) and ``y``. What
#: fused several may stand behind.
_KERNEL = re.compile(r"(?:fused )?(?:op|[zsy])(\d+)(?:_\d+)?(?:/\w+/)?")


def make_operator_model(
    operators: Sequence[Operator], batch: int, seed: int = 0, runtime: str = ""
) -> OperatorModel:
    """Builds the file.

    Args:
        operators: What to time. Convolutions and linear layers are followed by a ReLU, as in networks; where
            ``fused`` is ``add`` a second input is added before it.
        batch: Batch size.
        seed: Seed of weights and inputs.
        runtime: The kind of the runtime, where that makes a difference.

    Raises:
        MissingRowError: If an operator kind is not known here.
    """
    generator = np.random.default_rng(seed)
    builders = BUILDERS | IN_PIECES.get(runtime, {})
    branches = []
    for index, operator in enumerate(operators):
        check_known(operator)
        branch = builders[operator.kind](operator, index, batch, generator)
        for position, node in enumerate(branch.nodes):
            node.name = node.name or f"op{index}_{position}"
        branches.append(branch)
    inputs = {name: shape for branch in branches for name, shape in branch.inputs.items()}
    outputs = [f"y{index}" for index in range(len(operators))]
    graph = helper.make_graph(
        [node for branch in branches for node in branch.nodes],
        "operators",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [weight for branch in branches for weight in branch.weights],
    )
    opset = max((branch.opset for branch in branches), default=OPSET)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = IR_VERSION
    model = onnx.shape_inference.infer_shapes(model)
    feed = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()}
    return OperatorModel(model.SerializeToString(), feed, len(operators))


def is_known(operator: Operator, runtime: str) -> bool:
    """Whether an operator can be measured in a runtime."""
    return operator.kind in BUILDERS and operator.kind not in UNTIMED.get(runtime, ())


def check_known(operator: Operator, runtime: str = "") -> None:
    """Raises where an operator cannot be measured.

    Args:
        operator: Any.
        runtime: The kind of the runtime; where it is empty, it is enough that a model can be built.

    Raises:
        MissingRowError: In that case.
    """
    where = f"layer {operator.name}" if operator.name else None
    if operator.kind not in BUILDERS:
        raise MissingRowError(
            f"operators of kind {operator.kind} cannot be measured",
            where=where,
            expected=f"one of {', '.join(sorted(BUILDERS))}",
            got=operator.kind,
            hint="prune to a number of groups (--keep), for which nothing is priced",
        )
    if operator.kind in UNTIMED.get(runtime, ()):
        raise MissingRowError(
            f"operators of kind {operator.kind} cannot be measured in {runtime}",
            where=where,
            expected=f"none of {', '.join(sorted(UNTIMED[runtime]))}",
            got=operator.kind,
            hint="prune to a number of groups (--keep), or for another runtime",
        )


def _weight(name: str, shape: tuple[int, ...], generator: np.random.Generator, density: float = 1.0) -> Any:
    # Latency does not depend on the values, as long as none is denormal; drawing them one by one would
    # take longer than timing them.
    size = int(np.prod(shape))
    few = generator.uniform(-0.05, 0.05, size=min(size, 4099)).astype(np.float32)
    weights = np.resize(few, size)
    if density < 1:
        weights[generator.random(size, dtype=np.float32) >= density] = 0.0
    return numpy_helper.from_array(weights.reshape(shape), name)


def _activated(operator: Operator, index: int, branch: _Branch, shape: tuple[int, ...]) -> _Branch:
    """Adds the fused sum, if any, and the ReLU behind the value ``z{index}``."""
    value = f"z{index}"
    if operator.fused == "add":
        # A runtime that keeps maps in a layout of its own fuses the sum only where the other summand has
        # that layout too: a pooling of one pixel puts it there.
        branch.inputs[f"r{index}"] = shape
        branch.nodes.append(
            helper.make_node(
                "MaxPool",
                [f"r{index}"],
                [f"h{index}"],
                name=f"helper{index}",
                kernel_shape=[1, 1],
                strides=[1, 1],  # the default, but MNN's converter dies without it
            )
        )
        branch.nodes.append(helper.make_node("Add", [value, f"h{index}"], [f"s{index}"]))
        value = f"s{index}"
    branch.nodes.append(helper.make_node("Relu", [value], [f"y{index}"]))
    return branch


def _convolution(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> _Branch:
    kernel = (operator.kernel_h, operator.kernel_w)
    transposed = operator.kind == "conv_transpose"
    first, second = (
        (operator.in_channels, operator.out_channels)
        if transposed
        else (operator.out_channels, operator.in_channels)
    )
    node = helper.make_node(
        "ConvTranspose" if transposed else "Conv",
        [f"x{index}", f"w{index}", f"b{index}"],
        [f"z{index}"],
        kernel_shape=kernel,
        strides=operator.strides,
        pads=operator.paddings * 2,
        dilations=operator.dilations,
        group=operator.groups,
    )
    branch = _Branch(
        [node],
        [
            _weight(f"w{index}", (first, second // operator.groups, *kernel), generator, operator.density),
            _weight(f"b{index}", (operator.out_channels,), generator),
        ],
        {f"x{index}": _map_shape(operator, batch)},
    )
    return _activated(operator, index, branch, (batch, operator.out_channels, *operator.convolved_map))


def _linear(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> _Branch:
    node = helper.make_node("Gemm", [f"x{index}", f"w{index}", f"b{index}"], [f"z{index}"], transB=1)
    rows = batch * operator.height
    branch = _Branch(
        [node],
        [
            _weight(f"w{index}", (operator.out_channels, operator.in_channels), generator, operator.density),
            _weight(f"b{index}", (operator.out_channels,), generator),
        ],
        {f"x{index}": (rows, operator.in_channels)},
    )
    return _activated(operator, index, branch, (rows, operator.out_channels))


def _elementwise(op_type: str, arity: int, **attributes: float) -> Builder:
    def build(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> _Branch:
        names = [f"x{index}_{part}" for part in range(arity)]
        shape = _map_shape(operator, batch)
        node = helper.make_node(op_type, names, [f"y{index}"], **attributes)
        return _Branch([node], [], dict.fromkeys(names, shape))

    return build


def _concat(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> _Branch:
    half = operator.out_channels // 2
    parts = [size for size in (half, operator.out_channels - half) if size]
    names = [f"x{index}_{part}" for part in range(len(parts))]
    shapes: dict[str, tuple[int, ...]] = {
        name: (batch, size, operator.height, operator.width) for name, size in zip(names, parts, strict=True)
    }
    return _Branch([helper.make_node("Concat", names, [f"y{index}"], axis=1)], [], shapes)


def _pool(op_type: str) -> Builder:
    def build(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> _Branch:
        # Poolings of one pixel after the other do not say so: average poolings of this operator set cannot.
        dilations = {} if operator.dilations == (1, 1) else {"dilations": operator.dilations}
        node = helper.make_node(
            op_type,
            [f"x{index}"],
            [f"y{index}"],
            kernel_shape=[operator.kernel_h, operator.kernel_w],
            strides=operator.strides,
            pads=operator.paddings * 2,
            **dilations,
        )
        return _Branch([node], [], {f"x{index}": _map_shape(operator, batch)})

    return build


#: Operator kind to the branch that times it; a new kind is one entry.
BUILDERS: dict[str, Builder] = {
    "conv": _convolution,
    "conv_transpose": _convolution,
    "linear": _linear,
    "add": _elementwise("Add", 2),
    "mul": _elementwise("Mul", 2),
    "relu": _elementwise("Relu", 1),
    "clip": operator_branches.clip,
    "sigmoid": _elementwise("Sigmoid", 1),
    "tanh": _elementwise("Tanh", 1),
    "leaky_relu": _elementwise("LeakyRelu", 1),
    "hard_sigmoid": _elementwise("HardSigmoid", 1, alpha=1 / 6),  # PyTorch's
    "hard_swish": _elementwise("HardSwish", 1),
    "elu": _elementwise("Elu", 1),
    "softmax": _elementwise("Softmax", 1, axis=-1),
    "softmax_across": _elementwise("Softmax", 1, axis=2),
    "concat": _concat,
    "max_pool": _pool("MaxPool"),
    "average_pool": _pool("AveragePool"),
    "global_average_pool": _elementwise("GlobalAveragePool", 1),
    "sequence_mean": operator_branches.sequence_mean,
    "batch_norm": operator_branches.batch_norm,
    "matmul": operator_branches.matmul,
    "split": operator_branches.split,
    "slice": operator_branches.part,
    "pad": operator_branches.pad,
    "transpose": operator_branches.transpose,
    "resize": operator_branches.resize("nearest", "asymmetric"),
    "bilinear_resize": operator_branches.resize("linear", "half_pixel"),
    "layer_norm": operator_branches.layer_norm,
    "group_norm": operator_branches.group_norm,
    "instance_norm": operator_branches.instance_norm,
    "silu": operator_branches.silu,
    "gelu": operator_branches.gelu,
}
#: Runtime to what times kinds there that it takes to pieces before it runs them.
IN_PIECES: dict[str, dict[str, Builder]] = {
    "onnxruntime": {"hard_swish": operator_branches.hard_swish_in_steps},
}
#: Runtime to the kinds that it refuses, or runs as kernels that are not named after anything in the model.
UNTIMED: dict[str, frozenset[str]] = {
    "ncnn": frozenset({"group_norm", "layer_norm", "pad"}),
    "openvino": frozenset({"group_norm", "instance_norm", "layer_norm"}),
}
