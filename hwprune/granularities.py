"""The granularities by name: what a group of weights may be, and what decides about groups of that kind."""

from __future__ import annotations

from collections.abc import Callable

from hwprune.branch_scope import BranchScope
from hwprune.channel_scope import ChannelScope
from hwprune.depth_scope import DepthScope
from hwprune.errors import InputError
from hwprune.groups import MASKED, MakeMasked
from hwprune.mask_scope import MaskScope
from hwprune.scope import Request, Scope
from hwprune.shape_scope import ShapeScope
from hwprune.width_scope import WidthScope

CHANNEL = "channel"
#: Granularities that make the network smaller, each in its way; all others stay masks.
SHRINKING: dict[str, Callable[[Request], Scope]] = {
    CHANNEL: ChannelScope,
    "channel+branch": DepthScope,
    "branch": BranchScope,
    "shape": ShapeScope,
}

#: Those of them whose networks become faster by the width of their axes.
PRICED_BY_WIDTH = tuple(
    name for name, scope in SHRINKING.items() if isinstance(scope, type) and issubclass(scope, WidthScope)
)


def granularity_names() -> tuple[str, ...]:
    """What can be pruned: those of :data:`SHRINKING` make the network smaller, all others stay masks."""
    return tuple(dict.fromkeys((*SHRINKING, *MASKED)))


def make_scope(granularity: str | MakeMasked, request: Request) -> Scope:
    """What decides about the groups of a network.

    Args:
        granularity: A name from :func:`granularity_names`, or a function that makes the groups.
        request: The network, the device and the target.

    Raises:
        InputError: If there is no such granularity; and what the scope raises.
    """
    if not isinstance(granularity, str):
        return MaskScope(request, granularity)
    if granularity in SHRINKING:
        return SHRINKING[granularity](request)
    if granularity not in MASKED:
        raise InputError(
            "unknown granularity", expected=f"one of {', '.join(granularity_names())}", got=granularity
        )
    return MaskScope(request, MASKED[granularity])
