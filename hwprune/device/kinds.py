"""Kinds of operators that a latency table may price.

The one vocabulary between tables, which refuse a kind that is not here, and runtimes, which know how to
build and measure each of them.
"""

from __future__ import annotations

from dataclasses import replace

from hwprune.operators import Operator

#: Kind to what it is.
KINDS: dict[str, str] = {
    "conv": "convolution, bias and activation included",
    "conv_transpose": "transposed convolution, bias and activation included",
    "linear": "product of a matrix with a weight matrix, bias and activation included",
    "matmul": "product of two activations",
    "add": "element-wise sum or difference",
    "mul": "element-wise product or quotient",
    "concat": "concatenation along the channels",
    "split": "division into parts along the channels",
    "slice": "one part of an activation, cut out in one piece",
    "pad": "padding of the map",
    "transpose": "exchange of dimensions that moves data",
    "resize": "resizing of the map to the nearest values",
    "bilinear_resize": "resizing of the map between its values",
    "max_pool": "maximum over windows",
    "average_pool": "mean over windows",
    "global_average_pool": "mean over the whole map",
    "sequence_mean": "mean over the rows of a sequence",
    "batch_norm": "batch norm that no convolution absorbs",
    "layer_norm": "layer norm",
    "group_norm": "group norm",
    "instance_norm": "norm by the statistics of every channel of an image",
    "softmax": "softmax along the last dimension",
    "softmax_across": "softmax along another dimension",
    "relu": "max(x, 0)",
    "clip": "clamp, ReLU6 included",
    "leaky_relu": "leaky ReLU",
    "elu": "exponential linear unit",
    "sigmoid": "logistic function",
    "tanh": "hyperbolic tangent",
    "hard_sigmoid": "piecewise linear logistic function",
    "hard_swish": "x times hard sigmoid",
    "silu": "x times sigmoid",
    "gelu": "Gaussian error linear unit",
}


def configuration(operator: Operator) -> Operator:
    """What a table row has besides its channels: the operator with channels, name and groups taken out.

    A depthwise convolution has as many groups as channels, so its groups go with them; what stands for them
    is 0, less one for every further output per input.

    >>> configuration(Operator("conv", 8, 8, 4, 4, 3, 3, groups=8, name="stem")).groups
    0
    >>> configuration(Operator("conv", 8, 4, 4, 4, 3, 3, groups=2)).groups
    2
    """
    groups = 1 - operator.out_channels // operator.in_channels if operator.depthwise else operator.groups
    return replace(operator, in_channels=0, out_channels=0, groups=groups, name="")


def with_channels(operator: Operator, in_channels: int, out_channels: int) -> Operator:
    """The operator at other widths, its groups adapted where it is depthwise.

    >>> with_channels(Operator("conv", 8, 8, 4, 4, 3, 3, groups=8), 4, 4).groups
    4
    """
    groups = in_channels if operator.depthwise else operator.groups
    return replace(operator, in_channels=in_channels, out_channels=out_channels, groups=groups)


def describe(operator: Operator) -> str:
    """One line that names an operator as a table row does.

    >>> describe(Operator("conv", 8, 16, 4, 5, 3, 3, stride=2, padding=1, fused="add"))
    'conv 8->16 on 4x5, kernel 3x3, stride 2, padding 1, fused add'
    """
    text = f"{operator.kind} {operator.in_channels}->{operator.out_channels}"
    text += f" on {operator.height}x{operator.width}"
    if (operator.kernel_h, operator.kernel_w) != (1, 1):
        text += f", kernel {operator.kernel_h}x{operator.kernel_w}"
    for name, sizes, usual in (
        ("stride", operator.strides, 1),
        ("padding", operator.paddings, 0),
        ("dilation", operator.dilations, 1),
    ):
        if sizes != (usual, usual):
            text += f", {name} {along_axes(sizes)}"
    for name, default in (("groups", 1), ("fused", ""), ("density", 1.0)):
        value = getattr(operator, name)
        if value != default:
            text += f", {name} {value}"
    return text


def along_axes(sizes: tuple[int, int]) -> str:
    """Sizes along rows and columns: one number where they are alike.

    >>> along_axes((2, 2)), along_axes((1, 2))
    ('2', '1x2')
    """
    rows, columns = sizes
    return str(rows) if rows == columns else f"{rows}x{columns}"
