"""What is special about MNN: its converter, its sparse kernels and how it names kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import hwprune
from hwprune.device.profile import RuntimeSpec
from hwprune.errors import RuntimeUnavailableError
from hwprune.operators import Operator
from hwprune.runtime import formats
from hwprune.runtime.base import get_runtime
from hwprune.runtime.board import LOADERS
from hwprune.runtime.operator_models import make_operator_model

pytest.importorskip("MNN")

from hwprune.runtime import mnn
from hwprune.runtime.mnn import Mnn, MnnSparse, branch_names


def test_kernels_without_a_name_of_their_own_belong_to_the_next_that_has_one() -> None:
    kernels = [("BinaryOp5", "BinaryOp"), ("y3", "ReLU6"), ("h4_raster_0", "Raster"), ("h4", "Pooling")]
    assert branch_names(kernels) == ["op3_0", "op3_1", None, None]


def test_copies_count_between_the_parts_of_an_operator_and_not_at_its_edges() -> None:
    kernels = [
        ("z0__group__0_raster_0", "Raster"),
        ("z0__group__0", "Convolution"),
        ("y0__before_tr_raster_0", "Raster"),
        ("z1__matmul_converted_raster_0", "Raster"),
        ("z1__matmul_converted", "Convolution"),
        ("z1_raster_0", "Raster"),
        ("y2_raster_0", "Raster"),
    ]
    assert branch_names(kernels) == ["op0_0", "op0_1", None, "op1_3", "op1_4", None, "op2_6"]


def test_importing_it_leaves_stdout_to_the_results_of_commands() -> None:
    code = "from hwprune.runtime.base import get_runtime; print(get_runtime('mnn').version())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == Mnn().version()
    assert done.stderr == ""


@pytest.fixture(scope="module")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution of which 95 % of the weights are zero."""
    operator = Operator("conv", 128, 128, 8, 8, 3, 3, padding=1)
    model = onnx.load_from_string(make_operator_model([operator], batch=1).content)
    generator = np.random.default_rng(0)
    for item in model.graph.initializer:
        weights = numpy_helper.to_array(item)
        kept = weights * (generator.random(weights.shape) < 0.05)
        item.CopyFrom(numpy_helper.from_array(kept.astype(np.float32), item.name))
    path = tmp_path_factory.mktemp("mnn") / "zeros.onnx"
    onnx.save(model, path)
    return path


def test_sparse_kernels_compute_the_same_from_a_smaller_file(zeros: Path, tmp_path: Path) -> None:
    files = {"dense": tmp_path / "dense.mnn", "sparse": tmp_path / "sparse.mnn"}
    Mnn().convert(zeros, files["dense"])
    MnnSparse().convert(zeros, files["sparse"])
    assert files["sparse"].stat().st_size < 0.5 * files["dense"].stat().st_size
    feed = {"x0": np.random.default_rng(1).standard_normal((1, 128, 8, 8)).astype(np.float32)}
    spec = RuntimeSpec(kind="mnn")
    (expected,) = get_runtime("onnxruntime").open(zeros, RuntimeSpec(kind="onnxruntime")).run(feed)
    for file in files.values():
        (actual,) = Mnn().open(file, spec).run(feed)
        np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


class Breaking:
    """A network of MNN whose runs end early."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def runSession(self, session: object) -> int:  # noqa: N802 - MNN's name
        return 3

    def runSessionWithCallBackInfo(self, *_arguments: object) -> int:  # noqa: N802
        return 3


def test_a_run_that_ends_early_is_no_fast_one(zeros: Path) -> None:
    session = Mnn().open(zeros, RuntimeSpec(kind="mnn"))
    session._network = Breaking(session._network)
    feed = {"x0": np.zeros((1, 128, 8, 8), dtype=np.float32)}
    for run in (session.run, session.record):
        with pytest.raises(RuntimeUnavailableError, match=r"cannot run the model .*zeros.*error code 3"):
            run(feed)


def test_every_recorded_run_begins_with_the_inputs_that_were_fed(tmp_path: Path) -> None:
    """MNN writes later values where the inputs were; kernels take ten times as long for denormal ones."""
    operators = [Operator("conv", 48, 112, 4, 4, 3, 3, 2, 1)] * 8
    model = make_operator_model(operators, batch=1)
    (tmp_path / "operators.onnx").write_bytes(model.content)
    session = Mnn().open(tmp_path / "operators.onnx", RuntimeSpec(kind="mnn"))
    untouched: list[bool] = []

    class Watching:
        """MNN's network, which first looks at its inputs."""

        def runSessionWithCallBackInfo(self, *arguments: Any) -> int:  # noqa: N802 - MNN's name
            tensors = (mnn._host_tensor(session._tensors[name]) for name in model.feed)
            seen = []
            for name, host in zip(model.feed, tensors, strict=True):
                session._tensors[name].copyToHostTensor(host)
                seen.append(np.array(host.getNumpyData()).reshape(model.feed[name].shape))
            pairs = zip(seen, model.feed.values(), strict=True)
            untouched.append(all(np.array_equal(one, other) for one, other in pairs))
            return int(network.runSessionWithCallBackInfo(*arguments))

    session.feed(model.feed)
    network, session._network = session._network, Watching()
    for _ in range(3):
        session.record(model.feed)
    assert untouched == [True] * 3


def test_wide_integers_are_fed_on_another_machine_too(tmp_path: Path) -> None:
    embedding = torch.nn.Embedding(5, 4)
    hwprune.export(embedding, tmp_path / "network.onnx", torch.zeros(2, 3, dtype=torch.int64))
    (file,) = Mnn().convert(tmp_path / "network.onnx", tmp_path / "network.mnn")
    (name,) = (item.name for item in Mnn().open(file, RuntimeSpec(kind="mnn")).inputs)
    load, _ = LOADERS["mnn"]
    ids = np.array([[0, 4, 2]])
    outputs = load(file, {name: ids}, 1)()
    assert isinstance(outputs, list)
    np.testing.assert_allclose(outputs[0], embedding.weight.detach().numpy()[ids], atol=1e-6)


def test_a_file_that_is_none_of_mnn_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.mnn").write_bytes(b"junk" * 100)
    with pytest.raises(RuntimeUnavailableError, match="MNN refuses the model"):
        Mnn().open(tmp_path / "junk.mnn", RuntimeSpec(kind="mnn"))


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_large_kernels_are_allowed_the_rounding_of_their_transform_and_no_others(
    kernel: int, tmp_path: Path
) -> None:
    """Many channels of one size: what MNN's tiles of 5x5 and 7x7 cost in precision is seen there."""
    torch.manual_seed(0)
    network = nn.Conv2d(64, 48, kernel, padding=kernel // 2)
    hwprune.export(network, tmp_path / "model.onnx", torch.zeros(2, 64, 14, 14))
    allowed = formats.tolerance_of(tmp_path / "model.onnx", "mnn")
    assert allowed == (formats.TOLERANCE if kernel <= 3 else formats.LARGE_TILES_TOLERANCE)
    assert formats.tolerance_of(tmp_path / "model.onnx", "openvino") == formats.TOLERANCE
    converted = formats.convert(tmp_path / "model.onnx", "mnn", tmp_path)
    assert converted.files[0].is_file()
