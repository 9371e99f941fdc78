"""Operators of a network as an inference runtime executes them.

A network is traced (from PyTorch, or read from an ONNX file) into :class:`TracedOperator` records in
execution order; :func:`fuse` then merges what every runtime merges: batch norm into the convolution before
it, the activation after it, and the residual sum that follows it. What is left is priced row by row by
the latency table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

#: Kinds whose weights couple input and output channels; the only ones that absorb what follows them.
MATRIX_KINDS = frozenset({"conv", "conv_transpose", "linear"})
#: Kinds that a runtime applies inside the operator before them.
ACTIVATION_KINDS = frozenset({"relu", "clip", "leaky_relu", "sigmoid", "tanh", "hard_sigmoid"})
#: Kinds that move no data.
FREE_KINDS = frozenset({"reshape", "identity"})


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator with everything that its latency depends on.

    Attributes:
        kind: ``conv``, ``conv_transpose``, ``linear``, ``add``, ``mul``, ``concat``, ``max_pool``,
            ``average_pool``, ``global_average_pool``, ``relu``, ``batch_norm``, ``softmax``, ...
        in_channels: Channels (or features) of the input; for element-wise kinds the channels of the result,
            for ``concat`` the sum over its inputs.
        out_channels: Channels (or features) of the output.
        height: Rows of the input map; 1 for ``linear`` on a matrix.
        width: Columns of the input map; 1 for ``linear`` on a matrix.
        kernel_h: Kernel rows, 1 where there is no kernel.
        kernel_w: Kernel columns, 1 where there is no kernel.
        stride: Stride along both axes.
        padding: Zero padding along both axes.
        dilation: Dilation along both axes.
        groups: Convolution groups; a depthwise convolution has ``groups == in_channels``.
        fused: What runs inside this operator besides an activation: ``""`` or ``"add"``.
        name: The layer it came from; not part of its price.
        density: The part of the weights that are not zero.
    """

    kind: str
    in_channels: int
    out_channels: int
    height: int = 1
    width: int = 1
    kernel_h: int = 1
    kernel_w: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    fused: str = ""
    name: str = ""
    density: float = 1.0

    @property
    def depthwise(self) -> bool:
        """Whether every channel is convolved by itself."""
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def matrix(self) -> bool:
        """Whether the latency depends on (in_channels, out_channels) independently."""
        return self.kind in MATRIX_KINDS and not self.depthwise


@dataclass(frozen=True, slots=True)
class TracedOperator:
    """An operator and the values it reads and writes.

    Attributes:
        operator: The operator by itself, nothing fused.
        inputs: Names of the activations it reads (not of weights).
        output: Name of the activation it writes.
    """

    operator: Operator
    inputs: tuple[str, ...]
    output: str


def fuse(trace: Sequence[TracedOperator], outputs: Sequence[str] = ()) -> tuple[Operator, ...]:
    """Merges what runtimes merge, and drops what costs nothing.

    Args:
        trace: Operators in execution order.
        outputs: Values the network returns; they are never merged away.

    Returns:
        The operators that are left, in execution order.

    >>> conv = Operator("conv", 8, 8, 4, 4, 3, 3, padding=1)
    >>> fuse([
    ...     TracedOperator(conv, ("x",), "a"),
    ...     TracedOperator(Operator("batch_norm", 8, 8, 4, 4), ("a",), "b"),
    ...     TracedOperator(Operator("add", 8, 8, 4, 4), ("b", "x"), "c"),
    ...     TracedOperator(Operator("relu", 8, 8, 4, 4), ("c",), "d"),
    ... ])[0].fused
    'add'
    """
    readers = Counter(value for traced in trace for value in traced.inputs)
    readers.update(outputs)
    merged: list[Operator] = []
    # value -> position in `merged` of the matrix operator that writes it and could still absorb more,
    # with whether it has already taken a sum or an activation
    open_writers: dict[str, tuple[int, str]] = {}
    aliases: dict[str, str] = {}

    def resolve(value: str) -> str:
        while value in aliases:
            value = aliases[value]
        return value

    for traced in trace:
        operator = traced.operator
        inputs = [resolve(value) for value in traced.inputs]
        if operator.kind in FREE_KINDS and inputs:
            _alias(readers, aliases, inputs[0], traced.output)
            continue
        candidates = [value for value in inputs if value in open_writers and readers[value] == 1]
        if candidates:
            position, state = open_writers[candidates[0]]
            absorbed = _absorb(merged[position], state, operator, len(inputs))
            if absorbed is not None:
                merged[position], state = absorbed
                del open_writers[candidates[0]]
                open_writers[traced.output] = (position, state)
                continue
        merged.append(operator)
        if operator.kind in MATRIX_KINDS:
            open_writers[traced.output] = (len(merged) - 1, "plain")
    return tuple(merged)


def _alias(readers: Counter[str], aliases: dict[str, str], source: str, output: str) -> None:
    """Lets ``output`` stand for ``source``: it is read wherever either is."""
    aliases[output] = source
    readers[source] += readers[output] - 1


def _absorb(writer: Operator, state: str, operator: Operator, arity: int) -> tuple[Operator, str] | None:
    """The writer with ``operator`` merged into it and its new state, or ``None`` where it stays apart."""
    if operator.kind == "batch_norm" and state == "plain":
        return writer, "plain"
    if operator.kind in ACTIVATION_KINDS and state in ("plain", "summed"):
        return writer, "activated"
    if operator.kind == "add" and state == "plain" and arity == 2 and writer.kind == "conv":
        return replace(writer, fused="add"), "summed"
    return None


def multiply_accumulates(operator: Operator) -> int:
    """Multiply-accumulate operations of one operator at batch 1; 0 for kinds without weights.

    >>> multiply_accumulates(Operator("conv", 16, 32, 28, 28, 3, 3, stride=2, padding=1))
    903168
    """
    if operator.kind not in MATRIX_KINDS:
        return 0
    products = operator.in_channels // operator.groups * operator.out_channels
    if operator.kind == "linear":
        return products * operator.height
    taps = operator.kernel_h * operator.kernel_w
    if operator.kind == "conv_transpose":
        return products * taps * operator.height * operator.width
    rows = _output_size(operator.height, operator.kernel_h, operator)
    columns = _output_size(operator.width, operator.kernel_w, operator)
    return products * taps * rows * columns


def _output_size(size: int, kernel: int, operator: Operator) -> int:
    padding = operator.padding if kernel > 1 or size > 1 else 0
    return (size + 2 * padding - operator.dilation * (kernel - 1) - 1) // operator.stride + 1
