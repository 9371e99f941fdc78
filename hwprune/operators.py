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
#: Convolutions whose windows come to lie at ``height`` times ``width`` places; all but the first are of kinds
#: that no table knows (:mod:`hwprune.windows`).
PLACED_KINDS = frozenset(
    {
        "conv_transpose",
        "conv3d",
        "conv_transpose3d",
        "conv_uneven_padding",
        "conv_transpose_uneven_padding",
    }
)


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
        stride: Stride along the rows, and along the columns where nothing else is said.
        padding: Zero padding above and below, and on both sides where nothing else is said.
        dilation: Dilation along the rows, and along the columns where nothing else is said.
        groups: Convolution groups; a depthwise convolution has ``groups == in_channels``.
        fused: What runs inside this operator besides an activation: ``""`` or ``"add"``.
        name: The layer it came from; not part of its price.
        density: The part of the weights that are not zero.
        stride_w: Stride along the columns; ``None`` where it is that along the rows.
        padding_w: Zero padding on both sides; ``None`` where it is that above and below.
        dilation_w: Dilation along the columns; ``None`` where it is that along the rows.
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
    stride_w: int | None = None
    padding_w: int | None = None
    dilation_w: int | None = None

    def __post_init__(self) -> None:
        # One spelling of what is alike along both axes, so that equal operators are equal.
        for rows, columns in (
            (self.stride, "stride_w"),
            (self.padding, "padding_w"),
            (self.dilation, "dilation_w"),
        ):
            if getattr(self, columns) == rows:
                object.__setattr__(self, columns, None)

    @property
    def strides(self) -> tuple[int, int]:
        """Stride along the rows and along the columns."""
        return self.stride, self.stride if self.stride_w is None else self.stride_w

    @property
    def paddings(self) -> tuple[int, int]:
        """Zero padding at either end of the rows and of the columns."""
        return self.padding, self.padding if self.padding_w is None else self.padding_w

    @property
    def dilations(self) -> tuple[int, int]:
        """Dilation along the rows and along the columns."""
        return self.dilation, self.dilation if self.dilation_w is None else self.dilation_w

    @property
    def convolved_map(self) -> tuple[int, int]:
        """Rows and columns of the map that a convolution writes."""
        sizes = [
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                (self.height, self.width),
                (self.kernel_h, self.kernel_w),
                self.strides,
                self.paddings,
                self.dilations,
                strict=True,
            )
        ]
        return sizes[0], sizes[1]

    @property
    def weights(self) -> int:
        """How many weights of it are not zero."""
        if not (self.matrix or self.depthwise):
            return 0
        products = int(self.density * self.in_channels * self.out_channels) // self.groups
        return products * self.kernel_h * self.kernel_w

    @property
    def depthwise(self) -> bool:
        """Whether every channel is convolved by itself."""
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def matrix(self) -> bool:
        """Whether the latency depends on (in_channels, out_channels) independently."""
        return self.kind in (*MATRIX_KINDS, "matmul") and not self.depthwise

    @property
    def weighted(self) -> bool:
        """Whether it multiplies by one whole matrix of weights, single ones of which may be zero."""
        return self.kind in MATRIX_KINDS and self.groups == 1


@dataclass(frozen=True, slots=True)
class TracedOperator:
    """An operator and the values it reads and writes.

    Attributes:
        operator: The operator by itself, nothing fused.
        inputs: Names of the activations it reads (not of weights).
        output: Name of the activation it writes.
        bias: Whether all that it does is to add a number to every channel.
    """

    operator: Operator
    inputs: tuple[str, ...]
    output: str
    bias: bool = False


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
            absorbed = _absorb(merged[position], state, traced)
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


def _absorb(writer: Operator, state: str, traced: TracedOperator) -> tuple[Operator, str] | None:
    """The writer with an operator merged into it and its new state, or ``None`` where it stays apart."""
    operator, arity = traced.operator, len(traced.inputs)
    if operator.kind == "batch_norm" and state == "plain":
        return writer, "plain"
    if traced.bias and state == "plain" and writer.kind == "linear":
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
    if operator.kind not in MATRIX_KINDS | PLACED_KINDS:
        return 0
    products = operator.in_channels // operator.groups * operator.out_channels
    if operator.kind == "linear":
        return products * operator.height
    rows, columns = (
        (operator.height, operator.width) if operator.kind in PLACED_KINDS else operator.convolved_map
    )
    return products * operator.kernel_h * operator.kernel_w * rows * columns
