"""How a command ends that is interrupted; imports next to nothing, to be there while the rest is imported."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

#: Exit code of a run that the user interrupted.
INTERRUPTED = 130


def tell_interruption(what_to_do: str, arguments: Sequence[str]) -> NoReturn:
    """Ends the process with one line on stderr.

    Args:
        what_to_do: How the line begins that proposes a command.
        arguments: Of that command.
    """
    sys.stderr.write(f"Interrupted. {what_to_do} with: hwprune {shlex.join(arguments)}\n")
    sys.exit(INTERRUPTED)
