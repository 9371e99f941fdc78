"""ONNX Runtime on the provider that a profile names, and on no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

import hwprune
from hwprune.device.profile import RuntimeSpec
from hwprune.device.runtimes import CPU_PROVIDER
from hwprune.errors import InputError, RuntimeUnavailableError
from hwprune.operators import Operator
from hwprune.runtime.base import Effort, get_runtime, is_here, runtime_for
from hwprune.runtime.operator_models import OperatorModel, make_operator_model
from hwprune.runtime.remote import Host, measure_on

CUDA_PROVIDER = "CUDAExecutionProvider"
ON_CUDA = RuntimeSpec(kind="onnxruntime", provider=CUDA_PROVIDER, precision="fp16")


@pytest.fixture
def model() -> OperatorModel:
    return make_operator_model([Operator("relu", 8, 8, 4, 4)], batch=1)


@pytest.mark.skipif(CUDA_PROVIDER in onnxruntime.get_available_providers(), reason="it is here")
def test_a_provider_that_the_package_lacks_is_named_with_the_package_that_has_it() -> None:
    with pytest.raises(RuntimeUnavailableError, match=f"no {CUDA_PROVIDER} here.*onnxruntime-gpu"):
        runtime_for(ON_CUDA)
    assert not is_here(ON_CUDA)


def test_half_precision_needs_a_provider_that_runs_it() -> None:
    with pytest.raises(RuntimeUnavailableError, match="onnxruntime does not run fp16"):
        runtime_for(ON_CUDA.model_copy(update={"provider": CPU_PROVIDER}))


def test_a_session_that_fell_back_to_the_processor_is_refused(
    model: OperatorModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "relu.onnx"
    path.write_bytes(model.content)
    asked: list[list[str]] = []

    def without_libraries(source: str, options: Any, providers: list[str]) -> Any:
        """Does what ONNX Runtime does where the libraries of CUDA are missing."""
        asked.append(providers)
        return session(source, options, providers=[CPU_PROVIDER])

    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(onnxruntime, "InferenceSession", without_libraries)
    with pytest.raises(RuntimeUnavailableError, match=f"cannot use its {CUDA_PROVIDER}.*got {CPU_PROVIDER}"):
        get_runtime("onnxruntime").open(path, ON_CUDA)
    assert asked == [[CUDA_PROVIDER]]


def test_another_machine_does_not_answer_for_a_gpu(model: OperatorModel, tmp_path: Path) -> None:
    path = tmp_path / "relu.onnx"
    path.write_bytes(model.content)
    profile = hwprune.load_profile("any-cpu-ort").model_copy(update={"runtime": ON_CUDA})
    with pytest.raises(InputError, match=f"on the processor alone.*got {CUDA_PROVIDER}"):
        measure_on(Host("nobody"), {"relu": path}, profile)


def test_no_times_of_kernels_are_invented_for_a_gpu(model: OperatorModel) -> None:
    effort = Effort(seconds=0.01, least_runs=2, most_runs=2)
    with pytest.raises(RuntimeUnavailableError, match=r"no times of single kernels on a GPU.*--keep"):
        get_runtime("onnxruntime").operator_samples(model.content, ON_CUDA, model.feed, effort)
