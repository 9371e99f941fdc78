"""From a recording to the operators that a runtime will execute and a latency table can price."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from hwprune.activations import layer_norm, mean, of_one, shaped, softmax
from hwprune.graph.attention import CAUSAL_AT, attention_operators
from hwprune.graph.padding import with_padding_folded
from hwprune.graph.record import Call, ExampleInputs, Recording, Value, record
from hwprune.graph.zeros import without_zeros
from hwprune.operators import Operator, TracedOperator, fuse
from hwprune.products import matrix_product
from hwprune.windows import Window, convolution, pooling

#: ATen base names to operator kinds, for operators that need nothing but the shape of their result.
ELEMENTWISE_KINDS = {
    "add": "add",
    "add_": "add",
    "sub": "add",
    "mul": "mul",
    "mul_": "mul",
    "div": "mul",
    "relu": "relu",
    "relu_": "relu",
    "hardtanh": "clip",
    "hardtanh_": "clip",
    "clamp": "clip",
    "clamp_min": "clip",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "leaky_relu": "leaky_relu",
    "leaky_relu_": "leaky_relu",
    "hardsigmoid": "hard_sigmoid",
    "hardswish": "hard_swish",
    "hardswish_": "hard_swish",
    "silu": "silu",
    "silu_": "silu",
    "elu": "elu",
    "_native_batch_norm_legit_no_training": "batch_norm",
    "native_group_norm": "group_norm",
    "cat": "concat",
    "split_with_sizes": "split",
    "select": "slice",
    "constant_pad_nd": "pad",
    "permute": "transpose",
    "upsample_nearest2d": "resize",
    "upsample_bilinear2d": "bilinear_resize",
}
#: ATen base names of operators that move no data in a runtime.
FREE_OPERATORS = frozenset(
    {
        "view", "_unsafe_view", "reshape", "flatten", "unsqueeze", "squeeze", "expand", "alias",
        "detach", "clone", "contiguous", "t", "dropout", "_to_copy", "unflatten",
    }
)  # fmt: skip


def trace_operators(model: nn.Module, example_inputs: ExampleInputs) -> tuple[Operator, ...]:
    """The fused operators of one forward pass in evaluation mode.

    Args:
        model: Any module.
        example_inputs: What it is called with; only shapes matter, and the batch size does not.

    Returns:
        Operators in execution order. A kind that no table knows carries its ATen name, so that the
        table can refuse it by name.

    Raises:
        GraphError: If the forward pass fails.
    """
    return operators_of(record(model, example_inputs))


def operators_of(recording: Recording) -> tuple[Operator, ...]:
    """The fused operators of a recording, as an export folds them."""
    recording = with_padding_folded(without_zeros(_used(recording)))
    traced: list[TracedOperator] = []
    computed = {value.index for value in recording.inputs}
    batch = next((value.shape[0] for value in recording.inputs if value.shape), 1)
    read = {value.index for call in recording.calls for value in call.inputs}
    read.update(value.index for value in recording.outputs)
    for call in recording.calls:
        activations = [value for value in call.inputs if value.index in computed]
        if not activations or not call.outputs:
            continue  # a tensor made of parameters or constants alone is folded by every runtime
        computed.update(value.index for value in call.outputs)
        steps = _SEVERAL.get(_base(call), _no_steps)(call, activations, batch) or [
            _one_step(call, activations, batch)
        ]
        unread = {_name(value) for value in call.outputs if value.index not in read}
        steps = [each for each in steps if each.output not in unread] or steps[:1]
        steps = [replace(each, operator=replace(each.operator, name=call.module)) for each in steps]
        written = {each.output for each in steps}
        # Further outputs (the parts of a split) come with the first; those nobody reads are no reader
        # either (the statistics that a batch norm returns).
        traced += steps
        traced += [
            TracedOperator(_ALIAS, (_name(call.outputs[0]),), _name(output))
            for output in call.outputs
            if output.index in read and _name(output) not in written
        ]
    return fuse(traced, [_name(value) for value in recording.outputs])


def _used(recording: Recording) -> Recording:
    """The recording without what nobody reads, the attention weights that a module returns besides, say."""
    read = {value.index for value in recording.outputs}
    used = []
    for call in reversed(recording.calls):
        # What writes into an argument may be read through another view of it.
        if call.in_place or any(value.index in read for value in call.outputs):
            read.update(value.index for value in call.inputs)
            used.append(call)
    return replace(recording, calls=tuple(reversed(used)))


def with_densities(operators: Sequence[Operator], model: nn.Module) -> tuple[Operator, ...]:
    """Operators with the part of their weights that are not zero.

    Args:
        operators: From :func:`trace_operators`.
        model: The network they were traced from.
    """
    modules = dict(model.named_modules())
    found = []
    for operator in operators:
        weights = getattr(modules.get(operator.name), "weight", None)
        if operator.weighted and isinstance(weights, Tensor):
            left = max(int(torch.count_nonzero(weights)), 1)
            operator = replace(operator, density=left / weights.numel())
        found.append(operator)
    return tuple(found)


_ALIAS = Operator("identity", 1, 1)
#: From a call, the activations that it reads, and how many images the network was given.
Builder = Callable[[Call, list[Value], int], Operator]


def _name(value: Value) -> str:
    return f"v{value.index}"


def _base(call: Call) -> str:
    """Name of an ATen operator without its overload."""
    return call.op.split(".")[1]


def _one_step(call: Call, activations: list[Value], batch: int) -> TracedOperator:
    operator = _operator(call, activations, batch)
    inputs, bias = tuple(map(_name, activations)), _is_bias(call, activations)
    return TracedOperator(operator, inputs, _name(call.outputs[0]), bias)


def _no_steps(call: Call, activations: list[Value], batch: int) -> list[TracedOperator]:
    return []


def _is_bias(call: Call, activations: list[Value]) -> bool:
    """Whether a call adds a row of constants, as a linear layer does that is recorded in two steps."""
    others = [value for value in call.inputs if value not in activations]
    return (
        _base(call) in ("add", "add_")
        and len(activations) == 1
        and len(others) == 1
        and len(others[0].shape) == 1
    )


def _operator(call: Call, activations: list[Value], batch: int) -> Operator:
    """The operator that ``call`` stands for, named by its kind."""
    base = _base(call)
    builder = _BUILDERS.get(base)
    if builder is not None:
        return builder(call, activations, batch)
    kind = "identity" if base in FREE_OPERATORS else ELEMENTWISE_KINDS.get(base, base)
    return shaped(kind, call.outputs[0].shape, batch)


def _convolution(call: Call, activations: list[Value], batch: int) -> Operator:
    source, weight = call.args[0], call.args[1]
    stride, padding, dilation, transposed, _output_padding, groups = call.args[3:9]
    kernel = weight.shape[2:]
    strides, pads, dilations = (_along(len(kernel), sizes) for sizes in (stride, padding, dilation))
    window = Window(kernel, strides, pads, dilations)
    return convolution(
        source.shape, call.outputs[0].shape, window, groups=groups, transposed=bool(transposed)
    )


def _matrix_product(call: Call, activations: list[Value], batch: int) -> Operator:
    # What is added to the product comes first in the call: addmm(input, mat1, mat2).
    left, right = call.args[1:3] if _base(call) in ("addmm", "baddbmm") else call.args[:2]
    return matrix_product(
        left.shape, right.shape, batch, left_computed=left in activations, right_computed=right in activations
    )


def _pool(kind: str, *, dilates: bool) -> Builder:
    def build(call: Call, activations: list[Value], batch: int) -> Operator:
        places = (1, 2, 3, 4) if dilates else (1, 2, 3)
        given = [_along(2, call.args[at]) if at < len(call.args) else () for at in places]
        window = Window(given[0], given[1] or given[0], *given[2:])
        return pooling(kind, activations[0].shape, call.outputs[0].shape, window)

    return build


def _along(axes: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes along every axis; one number stands for all of them, none for what is usual."""
    return tuple(sizes) * axes if len(sizes) == 1 else tuple(sizes)


def _layer_norm(call: Call, activations: list[Value], batch: int) -> Operator:
    return layer_norm(call.outputs[0].shape, len(call.args[1]), batch)


def _mean(call: Call, activations: list[Value], batch: int) -> Operator:
    shape = activations[0].shape
    axes = call.args[1] if len(call.args) > 1 and call.args[1] else range(len(shape))
    return mean(shape, axes, batch)


def _softmax(call: Call, activations: list[Value], batch: int) -> Operator:
    return softmax(call.outputs[0].shape, call.args[1], batch)


def _batch_norm(call: Call, activations: list[Value], batch: int) -> Operator:
    shape = call.outputs[0].shape
    if not call.args[5]:
        return shaped("batch_norm", shape, batch)
    # By the statistics of what it reads, as instance norms are recorded: no part of a convolution.
    channels = of_one(shape[0] * shape[1], batch)
    return shaped("instance_norm", (batch, channels, *shape[2:]), batch)


def _gelu(call: Call, activations: list[Value], batch: int) -> Operator:
    kind = "gelu" if call.kwargs.get("approximate", "none") == "none" else "gelu_by_tanh"
    return shaped(kind, call.outputs[0].shape, batch)


def _slice(call: Call, activations: list[Value], batch: int) -> Operator:
    source, result = activations[0].shape, call.outputs[0].shape
    if source == result:
        return shaped("identity", result, batch)
    strided = len(call.args) > 4 and call.args[4] != 1
    return shaped("strided_slice" if strided else "slice", result, batch)


def _unbind(call: Call, activations: list[Value], batch: int) -> list[TracedOperator]:
    """One part after the other, as an export cuts them out; it drops their dimension only then."""
    part = list(activations[0].shape)
    part[call.args[1] if len(call.args) > 1 else 0] = 1
    operator, source = shaped("slice", part, batch), _name(activations[0])
    return [TracedOperator(operator, (source,), _name(output)) for output in call.outputs]


def _adaptive_pool(call: Call, activations: list[Value], batch: int) -> Operator:
    if all(int(size) == 1 for size in call.args[1]):
        return mean(activations[0].shape, (-2, -1), batch)
    source, result = activations[0].shape, call.outputs[0].shape
    # An image may come without a batch: its axes are the last ones.
    axes = list(zip(source[-2:], result[-2:], strict=True))
    if any(size % parts for size, parts in axes):
        return shaped("adaptive_average_pool", source, batch)
    kernel = [size // parts for size, parts in axes]
    if kernel == [1, 1]:
        return shaped("identity", source, batch)
    return pooling("average_pool", source, result, Window(kernel, strides=kernel))


_BUILDERS: dict[str, Builder] = {
    "convolution": _convolution,
    "addmm": _matrix_product,
    "mm": _matrix_product,
    "bmm": _matrix_product,
    "baddbmm": _matrix_product,
    "max_pool2d_with_indices": _pool("max_pool", dilates=True),
    "max_pool2d": _pool("max_pool", dilates=True),
    "avg_pool2d": _pool("average_pool", dilates=False),
    "native_layer_norm": _layer_norm,
    "native_batch_norm": _batch_norm,
    "_softmax": _softmax,
    "_safe_softmax": _softmax,
    "gelu": _gelu,
    "slice": _slice,
    "mean": _mean,
    "_adaptive_avg_pool2d": _adaptive_pool,
}
#: ATen base names of what runtimes execute as several operators.
_SEVERAL: dict[str, Callable[[Call, list[Value], int], list[TracedOperator]]] = {
    "unbind": _unbind,
    **dict.fromkeys(CAUSAL_AT, attention_operators),
}
