"""What times one operator: the branches of what stands between convolutions and linear layers.

Where the record of an operator leaves something open that hardly changes what it costs (how many groups a
group norm has, what a map was resized from), it is said here what is timed for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from hwprune.operators import Operator
from hwprune.runtime.export import OPSET

#: The first operator set with GELU as one operator: its parts are fused under a name of the runtime's own.
GELU_OPSET = 20
#: Bounds of ReLU6.
CLIP_BOUNDS = (0.0, 6.0)
#: Groups that a group norm is timed with, or the next smaller number that divides its channels.
NORM_GROUPS = 32


@dataclass(slots=True)
class Branch:
    """What one operator adds to the graph.

    Attributes:
        nodes: Writing ``y`` and the operator's index in the end.
        weights: Initialisers.
        inputs: Name to shape.
        opset: The operator set that the nodes need at least.
    """

    nodes: list[Any]
    weights: list[Any]
    inputs: dict[str, tuple[int, ...]]
    opset: int = OPSET


#: From operator, its index, batch size and a source of random weights.
Builder = Callable[[Operator, int, int, np.random.Generator], Branch]


def map_shape(operator: Operator, batch: int) -> tuple[int, ...]:
    """The shape of the operator's input map."""
    return (batch, operator.in_channels, operator.height, operator.width)


def matmul(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """A product of two activations."""
    inputs: dict[str, tuple[int, ...]] = {
        f"x{index}": (batch, operator.height, operator.in_channels),
        f"r{index}": (batch, operator.in_channels, operator.out_channels),
    }
    return Branch([helper.make_node("MatMul", list(inputs), [f"y{index}"])], [], inputs)


def split(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """A map of twice the channels divided into two: an operator is known by one of its parts."""
    node = helper.make_node("Split", [f"x{index}"], [f"y{index}", f"z{index}"], axis=1, num_outputs=2)
    shape = (batch, 2 * operator.out_channels, operator.height, operator.width)
    return Branch([node], [], {f"x{index}": shape})


def pad(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """One row and one column of zeros: an operator is known by the map with its margin."""
    whole = map_shape(operator, batch)
    added = [0, 0, *(int(size > 1) for size in whole[2:])]
    amounts = numpy_helper.from_array(np.array([0] * 4 + added, dtype=np.int64), f"amounts{index}")
    node = helper.make_node("Pad", [f"x{index}", amounts.name], [f"y{index}"])
    shape = tuple(size - more for size, more in zip(whole, added, strict=True))
    return Branch([node], [amounts], {f"x{index}": shape})


def transpose(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """Channels become the last dimension: of all exchanges the one between maps and sequences."""
    node = helper.make_node("Transpose", [f"x{index}"], [f"y{index}"], perm=[0, 2, 1])
    shape = (batch, operator.in_channels, operator.height * operator.width)
    return Branch([node], [], {f"x{index}": shape})


def resize(mode: str, coordinates: str) -> Builder:
    """A map from one of half the size: what is written costs most of it, whatever was read.

    Args:
        mode: ``nearest`` or ``linear``.
        coordinates: Which places of both maps lie on each other.
    """

    def build(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
        whole = map_shape(operator, batch)
        sizes = numpy_helper.from_array(np.array(whole, dtype=np.int64), f"sizes{index}")
        node = helper.make_node(
            "Resize",
            [f"x{index}", "", "", sizes.name],
            [f"y{index}"],
            mode=mode,
            nearest_mode="floor",
            coordinate_transformation_mode=coordinates,
        )
        return Branch([node], [sizes], {f"x{index}": (*whole[:2], *(-(-size // 2) for size in whole[2:]))})

    return build


def part(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """The first half of the channels of a map."""
    channels, *size = map_shape(operator, batch)[1:]
    bounds = [
        numpy_helper.from_array(np.array([place], dtype=np.int64), f"{name}{index}")
        for name, place in (("first", 0), ("last", channels), ("axis", 1))
    ]
    node = helper.make_node("Slice", [f"x{index}", *(bound.name for bound in bounds)], [f"y{index}"])
    return Branch([node], bounds, {f"x{index}": (batch, 2 * channels, *size)})


def sequence_mean(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """The mean of the rows, the channels being the last dimension."""
    axes = numpy_helper.from_array(np.array([1], dtype=np.int64), f"axes{index}")
    node = helper.make_node("ReduceMean", [f"x{index}", axes.name], [f"y{index}"], keepdims=0)
    shape = (batch, operator.height * operator.width, operator.in_channels)
    return Branch([node], [axes], {f"x{index}": shape})


def batch_norm(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """A norm of channels by statistics that are known."""
    names = [f"{letter}{index}" for letter in ("scale", "shift", "mean", "var")]
    ones = np.ones(operator.in_channels, dtype=np.float32)
    return Branch(
        [helper.make_node("BatchNormalization", [f"x{index}", *names], [f"y{index}"])],
        [numpy_helper.from_array(ones * (2 + part), name) for part, name in enumerate(names)],
        {f"x{index}": map_shape(operator, batch)},
    )


def layer_norm(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """A norm along the channels, which are the last dimension."""
    weights = _ones(index, ("scale", "shift"), (operator.in_channels,))
    names = [weight.name for weight in weights]
    node = helper.make_node("LayerNormalization", [f"x{index}", *names], [f"y{index}"], axis=-1)
    shape = (batch, operator.height * operator.width, operator.in_channels)
    return Branch([node], weights, {f"x{index}": shape})


def group_norm(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """A norm of groups of channels as it is exported: of one line per group, then scaled and shifted."""
    channels, whole = operator.in_channels, map_shape(operator, batch)
    groups = max(size for size in range(1, NORM_GROUPS + 1) if channels % size == 0)
    grouped, shape = (
        numpy_helper.from_array(np.array(sizes, dtype=np.int64), f"{name}{index}")
        for name, sizes in (("grouped", (batch, groups, -1)), ("shape", whole))
    )
    plain = _ones(index, ("one", "zero"), (groups,))
    affine = _ones(index, ("scale", "shift"), (channels, 1, 1))
    steps = [
        ("Reshape", [grouped.name]),
        ("InstanceNormalization", [weight.name for weight in plain]),
        ("Reshape", [shape.name]),
        ("Mul", [affine[0].name]),
        ("Add", [affine[1].name]),
    ]
    values = [f"x{index}", *(f"z{index}_{step}" for step in range(1, len(steps))), f"y{index}"]
    nodes = [
        helper.make_node(op_type, [values[step], *others], [values[step + 1]])
        for step, (op_type, others) in enumerate(steps)
    ]
    return Branch(nodes, [grouped, shape, *plain, *affine], {f"x{index}": whole})


def instance_norm(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """A norm of every channel of a map."""
    weights = _ones(index, ("scale", "shift"), (operator.in_channels,))
    names = [f"x{index}", *(weight.name for weight in weights)]
    node = helper.make_node("InstanceNormalization", names, [f"y{index}"])
    return Branch([node], weights, {f"x{index}": map_shape(operator, batch)})


def silu(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """The two operators that it is exported as."""
    nodes = [
        helper.make_node("Sigmoid", [f"x{index}"], [f"z{index}"]),
        helper.make_node("Mul", [f"x{index}", f"z{index}"], [f"y{index}"]),
    ]
    return Branch(nodes, [], {f"x{index}": map_shape(operator, batch)})


def hard_swish_in_steps(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """The two operators that a runtime without a kernel for it makes of it, under names of its own."""
    nodes = [
        helper.make_node("HardSigmoid", [f"x{index}"], [f"z{index}"], alpha=1 / 6),
        helper.make_node("Mul", [f"x{index}", f"z{index}"], [f"y{index}"]),
    ]
    return Branch(nodes, [], {f"x{index}": map_shape(operator, batch)})


def gelu(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """One operator: exported are its parts, which runtimes fuse to it."""
    node = helper.make_node("Gelu", [f"x{index}"], [f"y{index}"])
    return Branch([node], [], {f"x{index}": map_shape(operator, batch)}, GELU_OPSET)


def clip(operator: Operator, index: int, batch: int, generator: np.random.Generator) -> Branch:
    """Values within the bounds of ReLU6."""
    bounds = [
        numpy_helper.from_array(np.array(bound, dtype=np.float32), f"{name}{index}")
        for name, bound in zip(("least", "most"), CLIP_BOUNDS, strict=True)
    ]
    node = helper.make_node("Clip", [f"x{index}", *(bound.name for bound in bounds)], [f"y{index}"])
    return Branch([node], bounds, {f"x{index}": map_shape(operator, batch)})


def _ones(index: int, names: tuple[str, ...], shape: tuple[int, ...]) -> list[Any]:
    """Parameters of a norm; each near one, but not one, so that no runtime drops it."""
    return [
        numpy_helper.from_array(np.full(shape, 1 + 1 / math.e + part, dtype=np.float32), f"{name}{index}")
        for part, name in enumerate(names)
    ]
