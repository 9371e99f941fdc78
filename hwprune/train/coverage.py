"""Whether an optimiser updates what is pruned: its hook scales every group, whoever updates the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from hwprune.errors import InputError
from hwprune.groups.base import GroupSet

#: Names in a message.
SHOWN = 4


def check_coverage(
    optimizer: torch.optim.Optimizer, model: nn.Module, groups: GroupSet, notify: Callable[[str], None]
) -> None:
    """Raises where an optimiser leaves out parameters that are pruned, and tells of those that are frozen.

    What another optimiser updates after the proximal step would not stay zero.

    Args:
        optimizer: Over some of the model's parameters.
        model: The network.
        groups: Its groups.
        notify: Told of frozen layers, which are pruned like all others.

    Raises:
        InputError: If a parameter that is pruned and not frozen is left out.
    """
    pruned = {id(tensor) for tensor in groups.parameters()}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    named = [(name, parameter) for name, parameter in model.named_parameters() if id(parameter) in pruned]
    left_out = [name for name, parameter in named if parameter.requires_grad and id(parameter) not in held]
    if left_out:
        raise InputError(
            "the optimizer leaves out parameters that are pruned",
            where=f"{type(optimizer).__name__} over {len(held)} parameters",
            expected="one optimizer over model.parameters() of the compressor's model",
            got=f"one without {_shown(left_out)}",
            hint="give it all of them, or name the modules that it leaves out in keep",
        )
    frozen = [name for name, parameter in named if not parameter.requires_grad]
    if frozen:
        notify(
            f"pruned like all others, although frozen: {_shown(frozen)}; keep takes modules to leave whole"
        )


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
