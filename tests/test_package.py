"""The package as a whole: its public names, its errors, what importing it costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import hwprune
from hwprune import errors
from hwprune.runtime.base import REGISTRY

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(module.name for module in pkgutil.walk_packages(hwprune.__path__, "hwprune."))
#: Callbacks for trainers are imported by those who have the trainer.
CALLBACKS = {"hwprune.trainers.lightning", "hwprune.trainers.transformers"}
#: None of these is needed to import the rest.
OPTIONAL_PACKAGES = (
    "MNN", "PIL", "hypothesis", "lightning", "matplotlib", "ncnn", "openvino", "pnnx", "scipy", "sklearn",
    "tensorboard", "transformers",
)  # fmt: skip
#: What users may rely on.
CONTRACT = {
    "Compressor",
    "Groups",
    "HwpruneError",
    "Keep",
    "LatencyUs",
    "Speedup",
    "export",
    "load",
    "load_profile",
    "measure",
    "predict",
    "preview",
    "save",
    "width_predictor",
}


def test_public_names_are_sorted_complete_and_there() -> None:
    assert list(hwprune.__all__) == sorted(set(hwprune.__all__))
    assert set(hwprune.__all__) >= CONTRACT
    for name in hwprune.__all__:
        assert getattr(hwprune, name) is not None, name
        assert name in dir(hwprune)
    with pytest.raises(AttributeError, match="no attribute 'Kompressor'"):
        getattr(hwprune, "Kompressor")  # noqa: B009


def imported(name: str) -> ModuleType:
    """A module of the package; skips where it implements a runtime whose package is not installed."""
    for module, _, package, _ in REGISTRY.values():
        if module == name:
            pytest.importorskip(package)
    return importlib.import_module(name)


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_and_say_what_they_are(name: str) -> None:
    module = imported(name)
    summary = (module.__doc__ or "").partition("\n")[0]
    assert re.fullmatch(r"[A-Z].*[.:?]", summary), f"{name}: {summary!r}"
    listed = getattr(module, "__all__", [])
    assert list(listed) == sorted(set(listed)), name
    for public in listed:
        assert hasattr(module, public), f"{name}.{public}"


def test_every_error_has_one_root_and_stands_in_the_tree() -> None:
    classes = {
        name: item for name, item in inspect.getmembers(errors, inspect.isclass) if item is not Exception
    }
    drawn = set(re.findall(r"\b(\w+Error)\b", errors.__doc__ or ""))
    assert drawn == set(classes)
    assert all(issubclass(item, errors.HwpruneError) for item in classes.values())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "it broke"),
        ({"where": "row 3"}, "it broke (in row 3)"),
        ({"expected": 1, "got": 0}, "it broke: expected 1, got 0"),
        ({"where": "a", "got": "b", "hint": "mend it"}, "it broke (in a): got b. Mend it"),
    ],
)
def test_errors_tell_all_they_were_given(parts: dict[str, object], message: str) -> None:
    error = errors.InputError("it broke", **parts)  # type: ignore[arg-type]
    assert str(error) == message
    assert error.what == "it broke"
    assert (error.where, error.expected, error.got) == tuple(
        parts.get(name) for name in ("where", "expected", "got")
    )


def test_the_version_is_the_installed_one() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert metadata.version("hwprune") == declared


def test_importing_needs_no_optional_package() -> None:
    # What implements an optional runtime is imported when that runtime is asked for.
    optional = {module for module, _, _, extra in REGISTRY.values() if extra != "hwprune"} | CALLBACKS
    modules = [name for name in MODULES if name not in optional]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL_PACKAGES!r}));"
        f"import importlib; [importlib.import_module(name) for name in {modules!r}]"
    )
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, check=False)
    assert outcome.returncode == 0


def test_importing_leaves_the_random_state_and_says_nothing() -> None:
    code = (
        "import torch; torch.manual_seed(3); before = torch.random.get_rng_state();"
        "import hwprune; assert torch.equal(before, torch.random.get_rng_state())"
    )
    outcome = subprocess.run(
        [sys.executable, "-W", "error", "-c", code.replace("import torch;", "import torch, onnx;", 1)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, "", "")


@pytest.mark.parametrize("name", MODULES)
def test_house_rules_that_no_linter_checks(name: str) -> None:
    path = Path(inspect.getfile(imported(name)))
    source = path.read_text()
    tree = ast.parse(source)
    assert "NotImplementedError" not in source
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            assert function not in {"pickle.load", "pickle.loads", "eval", "exec"}, f"{name}:{node.lineno}"
            if function == "torch.load":
                flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert flags.get("weights_only") == "True", f"{name}:{node.lineno}"
