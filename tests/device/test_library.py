"""What is said of a profile's file that is wrong: file, line, key, expected and got."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwprune.device.library import load_profile, read_profile
from hwprune.device.runtimes import REGISTRY
from hwprune.errors import InputError, ProfileError

CONTENT = """\
schema = 1
name = "mine"

[hardware]
vendor = "any"
model = ""
isa = ""
cores = 1

[runtime]
kind = "onnxruntime"
provider = "CPUExecutionProvider"

[[rule]]
op = "conv"
granularity = "channel"
align = 8

[[rule]]
op = "linear"
granularity = "channel"

[latency]

[provenance]
source = "template"
"""

#: What is changed, to the line it stands in and parts of what is said of it.
BROKEN = {
    "runtime": ('"onnxruntime"', '"onnxruntme"', 11, ("key runtime.kind", "did you mean 'onnxruntime'")),
    "provider": (
        '"CPUExec',
        '"GPUExec',
        12,
        ("key runtime.provider", "expected a provider of onnxruntime: CPU", "got 'GPUExecution"),
    ),
    "provider of a runtime that has none": (
        '"onnxruntime"',
        '"mnn"',
        12,
        ("key runtime.provider", "a provider of mnn: there are none"),
    ),
    "operator": ('"linear"', '"conv2d"', 20, ("key rule.1.op", "did you mean 'conv'", "got 'conv2d'")),
    "infinite": (
        "[latency]",
        "[latency]\ncalibration = inf",
        24,
        ("key latency.calibration", "finite", "inf"),
    ),
    "factor of a kernel": (
        "[latency]",
        "[latency]\nkernels = { linear = 0.0 }",
        24,
        ("key latency.kernels.linear): expected a number above 0, got 0.0",),
    ),
    "unknown kernel": (
        "[latency]",
        "[latency]\nkernels = { liner = 1.5 }",
        24,
        ("expected one of pointwise, depthwise, linear", "mean 'linear'"),
    ),
    "too small": ("cores = 1", "cores = 0", 8, ("key hardware.cores): expected at least 1, got 0",)),
    "period": ("align = 8", "align = 8\nperiod = 12", 18, ("expected a multiple of align = 8, got 12",)),
    "divisor": ("align = 8", "align = 8\ndivisor = 3", 18, ("expected a divisor of align = 8, got 3",)),
    "blocks": (
        'op = "linear"\ngranularity = "channel"',
        'op = "linear"\ngranularity = "block"',
        19,
        ("expected n and m with n < m", "got op = 'linear', granularity = 'block'"),
    ),
    "choice": ('"template"', '"guessed"', 26, ("'measured', 'estimated' or 'template', got 'guessed'",)),
    "missing key": ('isa = ""\n', "", 4, ("expected isa besides", "got only vendor, model, cores")),
    "misspelt key": ("isa =", "iso =", 4, ("'iso' looks like a misspelling",)),
    "unknown key": ("align = 8", "align = 8\nalinged = 1", 18, ("expected one of op, ", "mean 'align'")),
    "folder": (
        'name = "mine"',
        'name = "mine"\nfolder = "/"',
        3,
        ("expected one of schema, name", "got folder"),
    ),
    "section": ("[latency]", "", None, ("expected [latency] besides", "got only schema, name, hardware")),
    "sections": ("[hardware]", "[[hardware]]", 4, ("expected a section [hardware]",)),
    "name": ('"mine"', '"yours"', 2, ("key name): expected mine, got yours",)),
    "table": ("[latency]", '[latency]\ntable = "none.csv"', 24, ("key latency.table", "none.csv beside")),
    "text for a number": ("align = 8", 'align = "8"', 17, ("key rule.0.align", "got '8'")),
    "flag for a number": ("align = 8", "align = true", 17, ("key rule.0.align", "got True")),
    "fraction for a number": ("align = 8", "align = 8.0", 17, ("key rule.0.align", "got 8.0")),
    "flag for the schema": ("schema = 1", "schema = true", 1, ("key schema", "expected 1", "got True")),
    "too large": ("align = 8", "align = 99999999999999999999", 17, ("key rule.0.align", "at most 1048576")),
    "axis": ("align = 8", 'align = 8\naxis = "input"', 14, ("axis with granularity block only",)),
    "no table": ('"template"', '"measured"', 26, ("no latency table", 'source = "template"', "got measured")),
    "nested": ('name = "mine"', f"name = {'[' * 3000}", None, ("is not TOML",)),
    "digits": ("cores = 1", f"cores = {'1' * 5000}", None, ("is not TOML",)),
}


def write(folder: Path, content: str) -> Path:
    profile = folder / "mine"
    profile.mkdir()
    (profile / "profile.toml").write_text(content)
    return profile


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_told_with_line_key_expected_and_got(tmp_path: Path, name: str) -> None:
    old, new, line, parts = BROKEN[name]
    assert CONTENT.count(old) == 1
    folder = write(tmp_path, CONTENT.replace(old, new))
    with pytest.raises(ProfileError) as caught:
        read_profile(folder)
    told = str(caught.value)
    assert f"profile.toml{'' if line is None else f', line {line},'}" in told
    for part in parts:
        assert part in told, told
    assert "Value error" not in told
    assert "Input should" not in told


@pytest.mark.parametrize("kind", sorted(REGISTRY))
def test_every_runtime_may_stand_in_a_profile(tmp_path: Path, kind: str) -> None:
    content = CONTENT.replace('"onnxruntime"', f'"{kind}"').replace('provider = "CPUExecutionProvider"\n', "")
    assert load_profile(write(tmp_path, content)).runtime.kind == kind


def test_a_mark_at_the_beginning_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert read_profile(write(tmp_path, "\ufeff" + CONTENT)).name == "mine"


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "nowhere"])
def test_a_name_that_no_profile_has_is_unknown(name: str) -> None:
    with pytest.raises(ProfileError, match="unknown device"):
        load_profile(name)


def test_what_is_no_name_is_refused() -> None:
    with pytest.raises(InputError, match="a name or a folder"):
        load_profile(None)  # type: ignore[arg-type]
