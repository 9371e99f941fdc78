"""Rules for operators along rows and columns of a map: pooling, resizing, padding, sampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwprune.graph.flow import Arguments, Flow, Labelled, Rule, aten, rule
from hwprune.graph.labels import Dims


def _along_last(count: int) -> Rule:
    """A rule for operators that treat every position before the last ``count`` dimensions alike."""

    def pass_leading(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
        """Carries the leading dimensions on and keeps what lies along the map."""
        tensor: Labelled = arguments["self"] if "self" in arguments else arguments["input"]
        flow.pin_all(tensor.dims[-count:], "it is pooled, resized or padded as part of a map")
        return [tensor.dims[:-count] + (None,) * count] * 2

    return pass_leading


_SPATIAL: dict[int, str] = {
    1: """
        adaptive_avg_pool1d avg_pool1d max_pool1d reflection_pad1d replication_pad1d
        upsample_linear1d upsample_nearest1d _upsample_nearest_exact1d
        """,
    2: """
        _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d max_pool2d
        max_pool2d_with_indices reflection_pad2d replication_pad2d upsample_bicubic2d upsample_bilinear2d
        _upsample_bicubic2d_aa _upsample_bilinear2d_aa upsample_nearest2d _upsample_nearest_exact2d tril triu
        mkldnn_max_pool2d
        """,
    3: """
        _adaptive_avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d avg_pool3d max_pool3d
        max_pool3d_with_indices reflection_pad3d replication_pad3d upsample_nearest3d upsample_trilinear3d
        _upsample_nearest_exact3d mkldnn_max_pool3d
        """,
}


for _count, _names in _SPATIAL.items():
    rule(*aten(_names))(_along_last(_count))


@rule("aten.grid_sampler_2d", "aten.grid_sampler_3d")
def sample_grid(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Samples a map at the places of a grid."""
    tensor: Labelled = arguments["input"]
    flow.pin_all(arguments["grid"].dims, "it says where a map is sampled")
    flow.pin_all(tensor.dims[2:], "a map is sampled along it")
    return [tensor.dims[:2] + (None,) * (tensor.rank - 2)]


@rule("aten.im2col")
def unfold(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Patches of a map as columns: every channel becomes one row per kernel position."""
    *batch, channels, height, width = arguments["self"].dims
    flow.pin_all((height, width), "patches are cut along it")
    positions = int(np.prod(arguments["kernel_size"]))
    rows = None if channels is None else np.repeat(channels, positions)
    return [(*batch, rows, None)]


@rule("aten.col2im")
def fold(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Columns summed back into a map."""
    *batch, rows, columns = arguments["self"].dims
    flow.pin(columns, "patches are laid out along it")
    if rows is not None:
        positions = int(np.prod(arguments["kernel_size"]))
        rows = flow.tie(rows.reshape(-1, positions).T, "patches are made of fixed channels")
    return [(*batch, rows, None, None)]


@rule("aten.unfold")
def windows(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """Windows along one dimension, laid out along a new last one."""
    tensor: Labelled = arguments["self"]
    dim = arguments["dimension"] % tensor.rank
    flow.pin(tensor.dims[dim], "windows slide along it")
    return [(*tensor.dims[:dim], None, *tensor.dims[dim + 1 :], None)]
