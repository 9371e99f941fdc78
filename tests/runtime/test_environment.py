"""Which profile this machine gets where nobody names one, and what it is taken for."""

from __future__ import annotations

import pytest
import torch

from hwprune.device.library import load_profile
from hwprune.device.profile import RuntimeSpec
from hwprune.errors import ProfileError, RuntimeUnavailableError
from hwprune.runtime import environment
from hwprune.runtime.environment import hardware_for, same_hardware
from hwprune.runtime.processor import machine


@pytest.mark.parametrize(
    ("isa", "name"),
    [
        ("neon", "any-cpu-ort"),
        ("arm64", "any-cpu-ort"),
        ("avx2", "x86-avx2-ort"),
        ("avx512", "x86-avx512-ort"),
    ],
)
def test_a_machine_nobody_measured_on_has_a_profile_for_its_instructions(
    isa: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "processor", lambda: ("a CPU", isa))
    monkeypatch.setattr(environment, "same_hardware", lambda _profile: (False, "another CPU"))
    assert environment.local_profile().name == name


def test_the_profile_measured_on_this_hardware_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    own = load_profile("x86-avx512-xeon-ort")
    monkeypatch.setattr(environment, "processor", lambda: (own.hardware.model, "avx512"))
    monkeypatch.setattr(environment, "same_hardware", lambda profile: (profile.hardware == own.hardware, ""))
    assert environment.local_profile().name == own.name


def test_a_template_is_not_taken_for_measured_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "processor", lambda: ("a CPU", "avx2"))
    monkeypatch.setattr(environment, "same_hardware", lambda profile: (profile.table is None, ""))
    assert environment.local_profile().name == "x86-avx2-ort"


def test_the_profile_for_any_machine_is_a_template_whose_channels_leave() -> None:
    profile = load_profile("any-cpu-ort")
    assert profile.table is None
    assert profile.granularity == "channel"


def test_where_none_fits_the_message_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "processor", lambda: ("a CPU", "neon"))
    others = (load_profile("x86-avx512-ort"), load_profile("arm64-mnn"), load_profile("x86-lowered-ort"))
    monkeypatch.setattr(environment, "find_profiles", lambda _search: others)
    with pytest.raises(ProfileError, match=r"isa neon.*hwprune profile build"):
        environment.local_profile()


def test_a_profile_of_a_gpu_is_not_that_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    profile = load_profile("any-cpu-ort")
    assert hardware_for(profile.runtime).model == machine()["cpu"]
    for spec in (
        RuntimeSpec(kind="tensorrt"),
        RuntimeSpec(kind="onnxruntime", provider="CUDAExecutionProvider"),
    ):
        with pytest.raises(RuntimeUnavailableError, match="there is no GPU here"):
            hardware_for(spec)
        same, why = same_hardware(profile.model_copy(update={"runtime": spec}))
        assert (same, why) == (False, "there is no GPU here")
