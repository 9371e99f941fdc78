"""Operators that look at windows of maps: convolutions, poolings, paddings and resizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hwprune.runtime.eager.table import translates

_CONVOLUTIONS: dict[int, Any] = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_TRANSPOSED: dict[int, Any] = {
    1: torch.conv_transpose1d,
    2: torch.conv_transpose2d,
    3: torch.conv_transpose3d,
}
_MAX_POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
#: Interpolations of PyTorch by ONNX's mode, where the coordinates begin, and how they are rounded.
_NEAREST = {("asymmetric", "floor"): "nearest"}
_SMOOTH = {"linear": {1: "linear", 2: "bilinear", 3: "trilinear"}, "cubic": {2: "bicubic"}}
_ALIGNED = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}
_CUBIC = -0.75
_PADDINGS = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
_NOT_SET = ("NOTSET", "VALID")


@translates("Conv")
def convolution(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] = (),
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """A convolution; a padding that differs from end to end is made before it."""
    rank = _rank(kernel_shape, strides, pads, auto_pad)
    maps, padding = _padded(maps, rank, pads, 0.0)
    stride, dilation = tuple(strides) or (1,) * rank, tuple(dilations) or (1,) * rank
    result: Tensor = _CONVOLUTIONS[rank](maps, weight, bias, stride, padding, dilation, group)
    return result


@translates("ConvTranspose")
def transposed_convolution(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel_shape: Sequence[int] = (),
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    output_padding: Sequence[int] = (),
    dilations: Sequence[int] = (),
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """A transposed convolution, cut off equally at both ends."""
    rank = _rank(kernel_shape, strides, pads, auto_pad)
    begin, end = tuple(pads[:rank]) or (0,) * rank, tuple(pads[rank:]) or (0,) * rank
    if begin != end:
        raise ValueError(f"a transposed convolution with pads {tuple(pads)}")
    stride, dilation = tuple(strides) or (1,) * rank, tuple(dilations) or (1,) * rank
    more = tuple(output_padding) or (0,) * rank
    result: Tensor = _TRANSPOSED[rank](maps, weight, bias, stride, begin, more, group, dilation)
    return result


@translates("MaxPool", outputs=True)
def max_pool(
    maps: Tensor,
    *,
    outputs: int,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    ceil_mode: int = 0,
    storage_order: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """Max-pooling."""
    if outputs > 1:
        raise ValueError("a max-pooling that tells where the largest values were")
    rank = _rank(kernel_shape, strides, pads, auto_pad)
    maps, padding = _padded(maps, rank, pads, float("-inf"), most=kernel_shape)
    stride, dilation = tuple(strides) or (1,) * rank, tuple(dilations) or (1,) * rank
    result: Tensor = _MAX_POOLS[rank](maps, tuple(kernel_shape), stride, padding, dilation, bool(ceil_mode))
    return result


@translates("AveragePool")
def average_pool(
    maps: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    """Average pooling."""
    rank = _rank(kernel_shape, strides, pads, auto_pad)
    maps, padding = _padded(maps, rank, pads, 0.0 if count_include_pad else None, most=kernel_shape)
    stride = tuple(strides) or (1,) * rank
    result: Tensor = _AVERAGE_POOLS[rank](
        maps, tuple(kernel_shape), stride, padding, bool(ceil_mode), bool(count_include_pad)
    )
    return result


@translates("GlobalAveragePool", whole=True)
def global_average_pool(maps: Tensor) -> Tensor:
    """The mean of every map."""
    return maps.mean(tuple(range(2, maps.dim())), keepdim=True)


@translates("GlobalMaxPool", whole=True)
def global_max_pool(maps: Tensor) -> Tensor:
    """The largest value of every map."""
    return torch.amax(maps, tuple(range(2, maps.dim())), keepdim=True)


@translates("Pad", static=(1, 2, 3))
def pad(
    values: Tensor,
    pads: Sequence[int],
    constant: float | None = None,
    axes: Sequence[int] | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """Padding of any dimension."""
    if axes is not None or mode not in _PADDINGS:
        raise ValueError(f"padding in the mode {mode}{' of some axes' if axes else ''}")
    return F.pad(values, _from_the_last(pads, mode), mode=_PADDINGS[mode], value=constant)


@translates("Resize", static=(1, 2, 3))
def resize(
    maps: Tensor,
    region: Sequence[float] | None = None,
    scales: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
    *,
    mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = _CUBIC,
    antialias: int = 0,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
) -> Tensor:
    """Interpolation of maps to a size or by a factor, where PyTorch counts coordinates in the same way."""
    rank = len(scales or sizes or ()) - 2
    where = coordinate_transformation_mode
    method = _NEAREST.get((where, nearest_mode)) if mode == "nearest" else _SMOOTH.get(mode, {}).get(rank)
    unusual = antialias or exclude_outside or keep_aspect_ratio_policy != "stretch"
    if method is None or unusual or (mode != "nearest" and where not in _ALIGNED) or cubic_coeff_a != _CUBIC:
        raise ValueError(f"resizing in the mode {mode} with coordinates {where}, {nearest_mode}")
    aligned = None if mode == "nearest" else _ALIGNED[where]
    if scales:
        if list(scales[:2]) != [1, 1]:
            raise ValueError("resizing of channels or of the batch")
        return F.interpolate(maps, scale_factor=tuple(scales[2:]), mode=method, align_corners=aligned)
    return F.interpolate(maps, size=tuple((sizes or ())[2:]), mode=method, align_corners=aligned)


def _rank(kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], auto_pad: str) -> int:
    """How many dimensions windows have; raises where the padding is left to the runtime."""
    if auto_pad not in _NOT_SET:
        raise ValueError(f"padding of the kind {auto_pad}")
    rank = len(kernel) or len(strides) or len(pads) // 2
    if rank not in _CONVOLUTIONS:
        raise ValueError(f"windows of {rank} dimensions")
    return rank


def _padded(
    maps: Tensor, rank: int, pads: Sequence[int], constant: float | None, most: Sequence[int] = ()
) -> tuple[Tensor, tuple[int, ...]]:
    """The maps and the padding that is left to the operator.

    Args:
        maps: What the operator reads.
        rank: Dimensions of its windows.
        pads: At the start of every dimension, then at the end of every dimension.
        constant: What it pads with; nothing where a padding before it would not be the same.
        most: Windows of a pooling, which pads by no more than half of one.
    """
    begin, end = tuple(pads[:rank]) or (0,) * rank, tuple(pads[rank:]) or (0,) * rank
    if begin == end and all(2 * size <= window for size, window in zip(begin, most, strict=False)):
        return maps, begin
    if constant is None:
        raise ValueError(f"an average pooling with pads {tuple(pads)}")
    return F.pad(maps, _from_the_last([*begin, *end]), value=constant), (0,) * rank


def _from_the_last(pads: Sequence[int], mode: str = "constant") -> list[int]:
    """Pads in PyTorch's order: the last dimension first, start and end of each."""
    rank = len(pads) // 2
    pairs = [(pads[axis], pads[axis + rank]) for axis in reversed(range(rank))]
    while mode != "constant" and pairs and pairs[-1] == (0, 0):
        pairs.pop()  # these modes are refused for dimensions that are not padded
    return [size for pair in pairs for size in pair]
