"""Engines of TensorRT: what they are built for, and that they are built where a package is there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import hwprune
from hwprune.device.profile import RuntimeSpec
from hwprune.errors import InputError, RuntimeUnavailableError
from hwprune.operators import Operator
from hwprune.runtime.base import InputInfo, get_runtime, is_here
from hwprune.runtime.engines import Ranges, build_engine, cache_folder, engine_name
from hwprune.runtime.formats import convert
from hwprune.runtime.half import half, to_half
from hwprune.runtime.onnx_values import read_values
from hwprune.runtime.operator_models import BUILDERS, make_operator_model

SINGLE = np.dtype(np.float32)
SOME = Ranges(1, 1, 4)
IMAGES = InputInfo("images", (None, 3, 8, 8), SINGLE)


def test_an_engine_is_built_for_the_numbers_of_images_that_a_file_leaves_open() -> None:
    fixed = InputInfo("scale", (1, 3), SINGLE)
    assert Ranges(1, 2, 8).shapes([IMAGES, fixed]) == {"images": ((1, 3, 8, 8), (2, 3, 8, 8), (8, 3, 8, 8))}
    assert Ranges.only(4).shapes([IMAGES]) == {"images": ((4, 3, 8, 8),) * 3}
    with pytest.raises(InputError, match="input map"):
        Ranges.only(1).shapes([InputInfo("map", (None, 3, None, 8), SINGLE)])


def test_an_engine_is_kept_for_one_file_one_shape_one_version_and_one_gpu() -> None:
    ranges = (Ranges.only(1), Ranges.only(2), Ranges(1, 1, 2))
    names = {engine_name(content, each) for content in (b"a", b"b") for each in ranges}
    assert len(names) == 6
    assert engine_name(b"a", Ranges.only(1)) == engine_name(b"a", Ranges.only(1))
    here = {"package": "tensorrt", "version": "10.12", "gpu": "A"}
    others = [here, {**here, "version": "11.0"}, {**here, "gpu": "B"}, {**here, "package": "tensorrt_rtx"}]
    assert len({cache_folder(device) for device in others}) == 4
    assert cache_folder(here) == cache_folder(dict(reversed(here.items())))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(1024, 5)
    )
    path = tmp_path_factory.mktemp("engines") / "network.onnx"
    hwprune.export(model, path, torch.zeros(2, 3, 8, 8))
    return path


@pytest.mark.parametrize(("asked", "package"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_without_package_or_gpu_one_error_says_what_is_missing_and_nothing_is_left(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, package: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    missing = rf"needs the package {package}\. .*'hwprune\[{asked}\]'.*a GPU is needed"
    for module, message in ((None, missing), (ModuleType(package), f"{asked} needs a GPU of NVIDIA")):
        monkeypatch.setitem(sys.modules, package, module)
        with pytest.raises(RuntimeUnavailableError, match=message):
            convert(network, asked, tmp_path / "out")
        assert not is_here(RuntimeSpec(kind=asked, precision="fp16"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def library(request: pytest.FixtureRequest) -> Any:
    """A package that is there; TensorRT-RTX builds engines without a GPU, TensorRT does not."""
    pytest.importorskip(request.param)
    if request.param == "tensorrt" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return importlib.import_module(request.param)


def built(library: Any, path: Path, ranges: Ranges = SOME) -> bytes:
    return build_engine(library, path.read_bytes(), read_values(path).inputs, ranges, path, None)


def test_engines_are_built_in_the_precision_of_the_file(
    library: Any, network: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    to_half(network, tmp_path / "half.onnx")
    single, halved = built(library, network), built(library, tmp_path / "half.onnx")
    weights = sum(np.prod(item.dims) for item in onnx.load(network).graph.initializer)
    assert len(single) - len(halved) > weights  # two bytes less for every weight
    assert built(library, network, Ranges.only(2)) != single
    assert capfd.readouterr() == ("", "")


def test_engines_are_built_of_every_operator_that_tables_price(library: Any) -> None:
    windows = {"kernel_h": 2, "kernel_w": 2, "stride": 2}
    special = dict.fromkeys(("conv_transpose", "max_pool", "average_pool"), windows)
    operators = [Operator(kind, 16, 16, 8, 8, **special.get(kind, {})) for kind in BUILDERS]
    model = make_operator_model(operators, batch=1).content
    for content in (model, half(model)):
        assert build_engine(library, content, (), Ranges.only(1), "all operators", None)


def test_what_is_no_model_is_refused_in_one_line(library: Any, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    with pytest.raises(RuntimeUnavailableError, match="TensorRT refuses the model") as caught:
        build_engine(library, b"not a model", (), Ranges.only(1), tmp_path / "x.onnx", None)
    assert caught.value.where == tmp_path / "x.onnx"
    assert "\n" not in str(caught.value)


def test_why_an_engine_cannot_be_built_is_told(
    library: Any, network: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    unsaid: tuple[InputInfo, ...] = ()  # so that nobody says how many images there are
    with pytest.raises(RuntimeUnavailableError, match="cannot build an engine of the model") as caught:
        build_engine(library, network.read_bytes(), unsaid, Ranges.only(1), network, None)
    assert "profile" in str(caught.value.got)
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt-rtx"])
def test_the_gpu_tells_what_a_run_takes(network: Path, kind: str) -> None:
    try:
        runtime = get_runtime(kind)
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    session: Any = runtime.open(network, RuntimeSpec(kind=kind))
    once = session.clocked({"input": np.zeros((1, 3, 8, 8), np.float32)})
    assert all(0 < once() < 1e5 for _ in range(3))
