"""What all tests share: patience of seconds, not of minutes, with a machine whose latencies do not settle,
and a place of their own for what they measure of networks.

Tests marked ``gpu``, and those of runtimes that run on one, are skipped where there is none.
"""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from platformdirs import user_cache_path

from hwprune import folder_lock, kept_measurements
from hwprune.runtime import local, patience, stopwatch
from hwprune.runtime.base import ON_GPU

#: Tests look at what is done with a latency, not at its last per cent.
PATIENCE_SECONDS = 0.5
#: Nor at whether rows are as close together as predictions want them.
SPLITTING_SECONDS = 3.0


#: Programs that are no part of the package.
TOOLS = Path(__file__).parent.parent / "tools"


@pytest.fixture(scope="module")
def load_tool() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a program under ``tools/`` by its name, anew at every call, until the module of tests ends."""
    with pytest.MonkeyPatch.context() as patches:
        patches.syspath_prepend(str(TOOLS))

        def load(name: str) -> ModuleType:
            specification = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
            assert specification is not None
            assert specification.loader is not None
            module = importlib.util.module_from_spec(specification)
            patches.setitem(sys.modules, name, module)
            specification.loader.exec_module(module)
            return module

        yield load


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a CUDA device, visibly."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") or _runs_on_gpu(item):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _runs_on_gpu(item: pytest.Item) -> bool:
    """Whether a test is that of a runtime, or of a format named after one, that runs on a GPU alone."""
    call = getattr(item, "callspec", None)
    return call is not None and any(call.params.get(key) in ON_GPU for key in ("kind", "name"))


@pytest.fixture(scope="session", autouse=True)
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ends a measurement early whose median does not become certain, and the search for steps of rows; makes
    none again that something disturbs.

    What networks take by such measurements is not left to the user's own runs, nor are the locks of folders
    that are gone. A test that sets another place for caches gets that.
    """
    cache, usual = tmp_path_factory.mktemp("cache"), os.environ.get("XDG_CACHE_HOME")

    def place(name: str) -> Path:
        return cache if os.environ.get("XDG_CACHE_HOME") == usual else user_cache_path(name)

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(kept_measurements, "user_cache_path", place)
        patches.setattr(folder_lock, "user_cache_path", place)
        patches.setattr(stopwatch, "MOST_SECONDS", PATIENCE_SECONDS)
        patches.setattr(local, "SPLITTING_SECONDS", SPLITTING_SECONDS)
        patches.setattr(patience, "LEAST_SECONDS", 0.0)
        patches.setattr(patience, "SHARE", 0.0)
        yield
