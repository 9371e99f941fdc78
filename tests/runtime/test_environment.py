"""Which profile this machine gets where nobody names one."""

from __future__ import annotations

import pytest

from hwprune.device.library import load_profile
from hwprune.errors import ProfileError
from hwprune.runtime import environment


@pytest.mark.parametrize(
    ("isa", "name"),
    [
        ("neon", "any-cpu-ort"),
        ("arm64", "any-cpu-ort"),
        ("avx2", "x86-avx2-ort"),
        ("avx512", "x86-avx512-ort"),
    ],
)
def test_every_machine_has_a_profile_and_its_own_comes_first(
    isa: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "processor", lambda: ("a CPU", isa))
    assert environment.local_profile().name == name


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
