"""What all tests share: patience of seconds, not of minutes, with a machine whose latencies do not settle."""

from collections.abc import Iterator

import pytest

from hwprune.runtime import stopwatch

#: Tests look at what is done with a latency, not at its last per cent.
PATIENCE_SECONDS = 0.5


@pytest.fixture(scope="session", autouse=True)
def impatient() -> Iterator[None]:
    """Ends a measurement early whose median does not become certain."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(stopwatch, "MOST_SECONDS", PATIENCE_SECONDS)
        yield
