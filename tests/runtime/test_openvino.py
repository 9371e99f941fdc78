"""What is special about OpenVINO: compiled for every shape, which it may refuse only then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hwprune
from hwprune.device.profile import RuntimeSpec
from hwprune.errors import RuntimeUnavailableError
from hwprune.runtime.base import get_runtime

pytest.importorskip("openvino")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 8, 8), dtype=np.float32), "refuses the sizes of the inputs"),
        (np.zeros((1, 1, 8, 8), dtype=np.complex64), "cannot run the model"),
    ],
)
def test_what_it_refuses_while_it_runs_is_told_with_the_file(
    images: np.ndarray, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "network.onnx"
    hwprune.export(nn.Conv2d(1, 2, 3), path, torch.zeros(2, 1, 8, 8))
    session = get_runtime("openvino").open(path, RuntimeSpec(kind="openvino"))
    with pytest.raises(RuntimeUnavailableError, match=rf"{message} \(in .*network\.onnx"):
        session.run({session.inputs[0].name: images})
