"""What is special about OpenVINO: compiled for every shape, which it may refuse only then."""

from __future__ import annotations

import subprocess
import sys
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


def test_signals_are_handled_after_networks_have_come_and_gone(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    hwprune.export(nn.Conv2d(2, 3, 3), path, torch.randn(1, 2, 6, 6))
    script = f"""
import faulthandler, gc, signal
import numpy as np
faulthandler.enable()  # as in pytest: signals are handled on a stack of their own
from pathlib import Path
from hwprune.device.profile import RuntimeSpec
from hwprune.runtime.base import get_runtime
spec = RuntimeSpec(kind="openvino")
for _ in range(3):
    one, other = (get_runtime("openvino").open(Path({str(path)!r}), spec) for _ in range(2))
    for session in (one, other):
        session.run({{session.inputs[0].name: np.zeros((1, 2, 6, 6), np.float32)}})
    del one
    gc.collect()
    del other, session
    gc.collect()
done = []
signal.signal(signal.SIGINT, lambda *_: done.append(True))
signal.raise_signal(signal.SIGINT)
assert done
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
