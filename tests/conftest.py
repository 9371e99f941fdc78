"""What all tests share: patience of seconds, not of minutes, with a machine whose latencies do not settle.

Tests marked ``gpu`` are skipped where there is none.
"""

from collections.abc import Iterator

import pytest
import torch

from hwprune.runtime import local, stopwatch

#: Tests look at what is done with a latency, not at its last per cent.
PATIENCE_SECONDS = 0.5
#: Nor at whether rows are as close together as predictions want them.
SPLITTING_SECONDS = 3.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a CUDA device, visibly."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def impatient() -> Iterator[None]:
    """Ends a measurement early whose median does not become certain, and the search for steps of rows."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(stopwatch, "MOST_SECONDS", PATIENCE_SECONDS)
        patches.setattr(local, "SPLITTING_SECONDS", SPLITTING_SECONDS)
        yield
