"""A slim ResNet-50 goes through every form that it is kept in."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hwprune.device.profile import RuntimeSpec
from hwprune.graph.coupling import find_axes
from hwprune.runtime.base import get_runtime
from hwprune.surgery.artifact import save_slim
from hwprune.surgery.outputs import compare
from hwprune.surgery.random_copies import randomised
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.trial import zeroed
from hwprune.surgery.verify import verify

PROGRAM = Path(__file__).with_name("resnet50.py")
_SPEC = importlib.util.spec_from_file_location("resnet50", PROGRAM)
resnet50 = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(resnet50)


@pytest.mark.slow
def test_saved_loaded_elsewhere_trained_and_exported_it_computes_the_same(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 64, 64, generator=generator)
    labels = torch.randint(0, 1000, (4,), generator=generator)
    dense = randomised(resnet50.ResNet50(), generator).eval()
    axes = find_axes(dense, images)
    kept = {axis.name: np.arange(axis.width) % 2 == 0 for axis in axes if axis.pinned is None}
    for axis in axes:
        if axis.name in kept:
            zeroed(dense, axis, kept[axis.name]).__enter__()
    slim = rebuild(dense, axes, kept)
    assert sum(p.numel() for p in slim.parameters()) < 0.3 * sum(p.numel() for p in dense.parameters())
    verify(dense, slim, [images])
    save_slim(tmp_path / "slim", slim, axes, kept, {"torch": torch.__version__})
    save_file({"images": images, "labels": labels}, str(tmp_path / "batch.safetensors"))

    arguments = [tmp_path / "slim", tmp_path / "batch.safetensors", tmp_path]
    subprocess.run([sys.executable, str(PROGRAM), *map(str, arguments)], check=True)

    there = load_file(str(tmp_path / "outputs.safetensors"))
    here = resnet50.train_one_step(slim, images, labels)
    for moment, expected in here.items():
        assert compare([expected], [there[moment]]).relative < 1e-5, moment
    assert compare([here["before"]], [here["after"]]).relative > 1e-3
    session = get_runtime("onnxruntime").open(tmp_path / "model.onnx", RuntimeSpec(kind="onnxruntime"))
    (item,) = session.inputs
    (exported,) = session.run({item.name: images.numpy()})
    assert compare([here["before"]], [torch.from_numpy(exported)]).relative < 1e-4
