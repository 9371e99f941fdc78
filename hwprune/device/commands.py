"""What to type where a table has no row, and how it says that it does not know the network."""

from __future__ import annotations

#: Stands for a network that nobody has named.
NAMELESS = "MODEL"
PLACEHOLDER = f"{NAMELESS}:CxHxW"
#: What measures missing rows of a table without a profile.
BUILD_COMMAND = f"hwprune profile build --for {PLACEHOLDER} --out DIR"


def with_placeholders_told(command: str) -> str:
    """A command, and what to put where it names no network.

    >>> with_placeholders_told("build --for resnet8:1x8x8")
    'build --for resnet8:1x8x8'
    >>> with_placeholders_told("build --for MODEL:1x8x8")
    'build --for MODEL:1x8x8 (MODEL: a built-in name or package.module:callable)'
    """
    if f"--for {NAMELESS}:" not in command:
        return command
    shape = "; CxHxW: the shape of an image" if PLACEHOLDER in command else ""
    return f"{command} ({NAMELESS}: a built-in name or package.module:callable{shape})"
