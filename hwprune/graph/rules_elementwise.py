"""Rules for operators that work position by position."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils._pytree import tree_leaves

from hwprune.graph.broadcast import combine
from hwprune.graph.flow import Arguments, Flow, Labelled, aten, rule
from hwprune.graph.labels import Dims


def _tensors(arguments: Arguments) -> list[Labelled]:
    """Every tensor among the arguments, in order."""
    return [leaf for leaf in tree_leaves(dict(arguments)) if isinstance(leaf, Labelled)]


@rule(
    *aten(
        """
        abs acos acosh alias asin asinh atan atanh bitwise_not ceil celu clamp clamp_max clamp_min clone
        contiguous cos cosh detach elu erf erfc exp exp2 expm1 floor frac full_like gelu hardshrink
        hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu lift_fresh lift_fresh_copy log log10
        log1p log2 log_sigmoid_forward logical_not logit mish nan_to_num neg ones_like pow positive
        reciprocal relu relu6 round rsqrt selu sigmoid sign silu sin sinc sinh softplus softshrink sqrt
        square tan tanh threshold trunc zeros_like empty_like _to_copy _conj_physical dropout
        native_dropout
        """
    ),
    *aten(
        """
        atan2 bitwise_and bitwise_or bitwise_xor copysign div eq floor_divide fmod ge gt le logical_and
        logical_or logical_xor lt masked_fill mul ne prelu _prelu_kernel remainder true_divide xlogy
        """
    ),
)
def multiply(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """One tensor, or several of which each can make the result zero."""
    tensors = _tensors(arguments)
    return [combine(flow, tensors, "combined element by element", additive=False)] * 2


@rule(
    *aten(
        """
        add addcdiv addcmul copy fmax fmin heaviside hypot lerp logaddexp maximum minimum rsub sub
        where
        """
    ),
)
def add(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Several tensors, whose result is zero only where all are."""
    return [combine(flow, _tensors(arguments), "added", additive=True)]


@rule("aten.fill", "aten.zero")
def overwrite(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Writes constants, possibly through a view into another tensor."""
    target = arguments["self"]
    flow.pin_all(target.dims, "overwritten with constants")
    return [target.dims]


@rule(
    *aten(
        """
        arange empty empty_strided eye full linspace new_empty new_empty_strided new_full new_ones
        new_zeros ones scalar_tensor zeros
        """
    ),
)
def construct(_flow: Flow, _arguments: Arguments) -> Sequence[Dims]:
    """Makes a tensor of literal size; what it is modelled on lends its type only."""
    return []


@rule("aten.glu")
def gated_linear_unit(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Halves a dimension and multiplies the halves."""
    tensor: Labelled = arguments["self"]
    dim = arguments["dim"] % tensor.rank
    dims = list(tensor.dims)
    labels = dims[dim]
    if labels is not None:
        dims[dim] = flow.tie(labels.reshape(2, -1), "gated by something of fixed width")
    return [tuple(dims)]
