"""Operators that work number by number, and those that sum or normalise along dimensions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hwprune.runtime.eager.table import TRANSLATIONS, Function, Translation, translates

#: Operators without attributes that PyTorch has as they are.
_PLAIN: dict[str, Function] = {
    "Abs": torch.abs, "Add": torch.add, "And": torch.logical_and, "Ceil": torch.ceil, "Cos": torch.cos,
    "Equal": torch.eq, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "HardSwish": F.hardswish, "IsNaN": torch.isnan, "Less": torch.lt,
    "LessOrEqual": torch.le, "Log": torch.log, "MatMul": torch.matmul, "Mish": F.mish, "Mul": torch.mul,
    "Neg": torch.neg, "Not": torch.logical_not, "Or": torch.logical_or, "Pow": torch.pow,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid,
    "Sign": torch.sign, "Sin": torch.sin, "Softplus": F.softplus, "Softsign": F.softsign,
    "Sqrt": torch.sqrt, "Sub": torch.sub, "Tanh": torch.tanh, "Where": torch.where, "Xor": torch.logical_xor,
}  # fmt: skip
_JOINED: dict[str, Function] = {"Max": torch.maximum, "Min": torch.minimum, "Sum": torch.add}
_REDUCED: dict[str, Function] = {
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
    "ReduceL2": torch.linalg.vector_norm,
}
#: The slope of PyTorch's hard sigmoid; other slopes are written out.
_HARD_SLOPE = 1 / 6


def _without_attributes(function: Function) -> Function:
    def call(*inputs: Any) -> Any:
        return function(*inputs)

    return call


def _joined(function: Function) -> Function:
    def call(inputs: Sequence[Tensor]) -> Tensor:
        result: Tensor = functools.reduce(function, inputs)
        return result

    return call


def _reduced(function: Function) -> Function:
    def call(
        values: Tensor, axes: Sequence[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        if not axes and noop_with_empty_axes:
            return values
        result: Tensor = function(values, dim=tuple(axes or ()), keepdim=bool(keepdims))
        return result

    return call


TRANSLATIONS.update({kind: Translation(_without_attributes(function)) for kind, function in _PLAIN.items()})
TRANSLATIONS.update(
    {kind: Translation(_joined(function), variadic=True) for kind, function in _JOINED.items()}
)
TRANSLATIONS.update(
    {kind: Translation(_reduced(function), static=(1,)) for kind, function in _REDUCED.items()}
)


@translates("Identity")
def identity(values: Tensor) -> Tensor:
    """The values themselves."""
    return values


@translates("Dropout", static=(1, 2))
def dropout(
    values: Tensor, ratio: float | None = None, training: bool | None = None, *, seed: int = 0
) -> Tensor:
    """The values themselves: networks are run in evaluation mode."""
    if training:
        raise ValueError("a dropout that is on")
    return values


@translates("Div", whole=True)
def divide(dividend: Tensor, divisor: Tensor) -> Tensor:
    """The quotient; of integers it is cut off."""
    if dividend.is_floating_point():
        return torch.div(dividend, divisor)
    return torch.div(dividend, divisor, rounding_mode="trunc")


@translates("Mod")
def modulo(dividend: Tensor, divisor: Tensor, *, fmod: int = 0) -> Tensor:
    """The remainder, with the sign of the dividend or of the divisor."""
    return torch.fmod(dividend, divisor) if fmod else torch.remainder(dividend, divisor)


@translates("LeakyRelu")
def leaky_relu(values: Tensor, *, alpha: float = 0.01) -> Tensor:
    """Negative values times a slope."""
    return F.leaky_relu(values, alpha)


@translates("PRelu")
def parametric_relu(values: Tensor, slope: Tensor) -> Tensor:
    """Negative values times slopes of any shape that spreads to theirs."""
    return torch.where(values < 0, values * slope, values)


@translates("Elu")
def elu(values: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Exponential linear unit."""
    return F.elu(values, alpha)


@translates("Gelu")
def gelu(values: Tensor, *, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit."""
    return F.gelu(values, approximate=approximate)


@translates("HardSigmoid")
def hard_sigmoid(values: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """A straight line between 0 and 1."""
    if np.isclose(alpha, _HARD_SLOPE) and beta == 0.5:
        return F.hardsigmoid(values)
    return torch.clamp(values * alpha + beta, 0.0, 1.0)


@translates("Clip", static=(1, 2))
def clip(values: Tensor, least: float | None = None, most: float | None = None) -> Tensor:
    """Values within bounds."""
    return torch.clamp(values, least, most)


@translates("Cast")
def cast(values: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    """Another element type."""
    return values.to(torch_type(to))


def torch_type(element: int) -> torch.dtype:
    """The element type that ONNX has under a number."""
    known = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element))
    return torch.from_numpy(np.zeros((), known)).dtype


@translates("Softmax")
def softmax(values: Tensor, *, axis: int = -1) -> Tensor:
    """Softmax along one dimension."""
    return torch.softmax(values, axis)


@translates("LogSoftmax")
def log_softmax(values: Tensor, *, axis: int = -1) -> Tensor:
    """Its logarithm."""
    return torch.log_softmax(values, axis)


@translates("CumSum", static=(1,))
def running_sum(values: Tensor, axis: int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """Sums of all values up to each."""
    if exclusive or reverse:
        raise ValueError("running sums that are exclusive or go backwards")
    return torch.cumsum(values, axis)


@translates("ArgMax")
def arg_max(values: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """Where the largest value is."""
    if select_last_index:
        raise ValueError("the last of several largest values")
    return torch.argmax(values, axis, keepdim=bool(keepdims))


@translates("Gemm")
def linear(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 - as the attributes are called
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """A linear layer where it is one, else a product of matrices."""
    if transB and not transA and alpha == beta == 1:
        return F.linear(rows, weight, bias)
    left, right = rows.t() if transA else rows, weight.t() if transB else weight
    if bias is None:
        return torch.mm(left, right) if alpha == 1 else torch.mm(left, right) * alpha
    return torch.addmm(bias, left, right, beta=beta, alpha=alpha)


@translates("Einsum", variadic=True)
def einstein_sum(factors: Sequence[Tensor], *, equation: str) -> Tensor:
    """Sums of products in Einstein's notation."""
    result: Tensor = torch.einsum(equation, *factors)
    return result


@translates("BatchNormalization")
def batch_norm(
    maps: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    """Batch norm with the running statistics."""
    if training_mode:
        raise ValueError("a batch norm in training mode")
    return F.batch_norm(maps, mean, variance, scale, shift, eps=epsilon)


@translates("InstanceNormalization")
def instance_norm(maps: Tensor, scale: Tensor, shift: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Every map of every image normalised."""
    return F.instance_norm(maps, weight=scale, bias=shift, eps=epsilon)


@translates("LayerNormalization")
def layer_norm(
    values: Tensor,
    scale: Tensor,
    shift: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    """Layer norm over as many of the last dimensions as the scale has."""
    return F.layer_norm(values, scale.shape, scale, shift, epsilon)
