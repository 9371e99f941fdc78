"""Products of matrices as operators: all rows of one image, whatever shape PyTorch and exports give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hwprune.graph.trace import trace_operators
from hwprune.operators import Operator, multiply_accumulates
from hwprune.runtime.export import export
from hwprune.runtime.onnx_graph import read_operators


class Called(nn.Module):
    """A function of two activations."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*values)


class WeightsFirst(nn.Module):
    """Weights times columns."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))

    def forward(self, columns: Tensor) -> Tensor:
        return torch.matmul(self.weight, columns)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8,), (50, 8), (5, 10, 8)])
def test_a_linear_layer_works_on_every_row_of_an_image(
    batch: int, bias: bool, shape: tuple[int, ...]
) -> None:
    (operator,) = trace_operators(nn.Linear(8, 16, bias=bias), torch.zeros(batch, *shape))
    rows = torch.zeros(shape)[..., 0].numel()
    assert operator == Operator("linear", 8, 16, height=rows)
    assert multiply_accumulates(operator) == rows * 128


def test_the_file_of_a_linear_layer_says_the_same(tmp_path: Path) -> None:
    for shape in ((2, 8), (2, 50, 8)):
        layer, tokens = nn.Linear(8, 16), torch.zeros(shape)
        export(layer, tmp_path / "layer.onnx", tokens)
        product = read_operators(tmp_path / "layer.onnx")[0]  # the bias may be a sum of its own
        assert (replace(product, name=""),) == trace_operators(layer, tokens)


def test_the_summand_is_no_factor_and_every_head_counts() -> None:
    queries, keys = torch.zeros(2, 4, 50, 8), torch.zeros(2, 4, 8, 50)
    (heads,) = trace_operators(Called(torch.matmul), (queries, keys))
    assert heads == Operator("matmul", 8, 50, height=4 * 50)
    summed = torch.zeros(2, 30, 50), torch.zeros(2, 30, 8), torch.zeros(2, 8, 50)
    (product,) = trace_operators(Called(torch.baddbmm), summed)
    assert product == Operator("matmul", 8, 50, height=30)


def test_weights_may_stand_on_the_left() -> None:
    assert Operator("linear", 8, 16, height=50) in trace_operators(WeightsFirst(16, 8), torch.zeros(2, 8, 50))
    (stacked,) = trace_operators(WeightsFirst(4, 16, 8), torch.zeros(4, 8, 50))
    assert stacked.kind == "batched_linear"
