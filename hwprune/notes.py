"""Lines that the user should know, where nobody asked for them: they are logged."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class Weighty(str):
    """A line that must be seen by whoever has not set up any logging, too."""

    __slots__ = ()


def log_note(line: str) -> None:
    """Logs a line: as a warning where it is :class:`Weighty`, else as information.

    Args:
        line: What the user should know.
    """
    logger.log(logging.WARNING if isinstance(line, Weighty) else logging.INFO, "%s", line)
