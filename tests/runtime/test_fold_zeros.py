import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from hwprune.runtime.export import export

IMAGES = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(4, 4, 1)
        self.shift = nn.Parameter(torch.zeros(1, 4, 8, 8))
        self.function = function

    def forward(self, images):
        return self.function(self.convolution(images), self.shift)


def in_place(features, _shift):
    hidden = torch.relu(torch.zeros_like(features))
    hidden += features
    return hidden


CASES = {
    "like": (lambda x, _: torch.relu(x + torch.zeros_like(x)), ["Conv", "Relu"]),
    "of another size": (
        lambda x, _: x[:, :, ::2, ::2] + torch.zeros((x.shape[0], 4, -(-x.shape[2] // 2), 4)),
        ["Conv", "Slice", "Slice", "Identity"],
    ),
    "in place": (in_place, ["Conv", "Identity"]),
    "rectified twice": (
        lambda x, _: torch.relu(torch.relu(x) + torch.zeros_like(x)) * 2,
        ["Conv", "Relu", "Mul"],
    ),
    "a weight": (lambda x, shift: x + shift, ["Conv", "Add"]),
    "broadcast": (
        lambda x, _: x.mean((2, 3), keepdim=True) + torch.zeros_like(x),
        ["Conv", "ReduceMean", "Shape", "Expand", "Add"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_sums_with_zeros_leave_the_file_and_nothing_else_does(name, tmp_path):
    function, expected = CASES[name]
    model = Called(function).eval()
    export(model, tmp_path / "model.onnx", IMAGES)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert sorted(node.op_type for node in graph.node) == sorted(expected)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (actual,) = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(actual, model(IMAGES).numpy(), atol=1e-5)
    read = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
    assert {item.name for item in graph.initializer} <= read
