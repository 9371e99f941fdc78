"""The command line from its first moment on, and as ``python -m hwprune`` for launchers like ``torchrun``."""

from __future__ import annotations

import sys

from hwprune.interruption import tell_interruption


def run() -> None:
    """What ``hwprune`` starts."""
    try:
        from hwprune.cli import main
    except KeyboardInterrupt:  # torch takes seconds to import; from here on every command tells it itself
        tell_interruption("Start again", sys.argv[1:])
    main(prog_name="hwprune")


if __name__ == "__main__":
    run()
