"""The same cut by plain torch-pruning, with the same question asked of the result."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch_pruning
from torch import nn
from zoo_networks import Inputs

from hwprune.surgery.outputs import compare, outputs_of


def prune_half(dense: nn.Module, inputs: Inputs, outputs: Sequence[str]) -> tuple[nn.Module, nn.Module]:
    """Prunes half of every layer's channels with torch-pruning's magnitude pruner.

    Args:
        dense: The network; not touched.
        inputs: What it is called with.
        outputs: Names of the modules that make the outputs; torch-pruning is told to ignore them.

    Returns:
        The pruned network, and the dense one with the same filters at zero.
    """
    pruned, masked = copy.deepcopy(dense), copy.deepcopy(dense)
    names = {id(module): name for name, module in pruned.named_modules()}
    names |= {id(parameter): name for name, parameter in pruned.named_parameters()}
    pruner = torch_pruning.pruner.MagnitudePruner(
        pruned,
        inputs,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[pruned.get_submodule(name) for name in outputs],
    )
    alive: dict[str, list[int]] = {}  # positions count from what earlier groups have left
    for group in pruner.step(interactive=True):
        gone: dict[str, set[int]] = defaultdict(set)
        for dependency, positions in group:
            name = names.get(id(dependency.target.module))
            if name is not None and pruner.DG.is_out_channel_pruning_fn(dependency.handler):
                width = pruner.DG.get_out_channels(dependency.target.module)
                alive.setdefault(name, list(range(width)))
                gone[name].update(positions)
        for name, positions in gone.items():
            _zero(masked, name, [alive[name][position] for position in sorted(positions)])
            alive[name] = [old for new, old in enumerate(alive[name]) if new not in positions]
        group.prune()
    return pruned, masked


def _zero(masked: nn.Module, name: str, positions: list[int]) -> None:
    """Zeroes what makes the channels at ``positions`` of one module or parameter."""
    index = torch.tensor(positions)
    with torch.no_grad():
        parameter = dict(masked.named_parameters()).get(name)
        if parameter is not None:
            # What torch-pruning cuts of a bare parameter: its last dimension that is not 1.
            wide = max(dim for dim, size in enumerate(parameter.shape) if size > 1)
            parameter.index_fill_(wide, index, 0.0)
            return
        module = masked.get_submodule(name)
        if isinstance(module, nn.PReLU):
            return
        transposed = isinstance(module, nn.Embedding) or (
            isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups == 1
        )
        for attribute in ("weight", "bias", "running_mean"):
            tensor = getattr(module, attribute, None)
            if isinstance(tensor, torch.Tensor):
                tensor.index_fill_(int(transposed and attribute == "weight"), index, 0.0)


def judge(dense: nn.Module, inputs: Inputs, outputs: Sequence[str], tolerance: float) -> tuple[str, float]:
    """Prunes and compares.

    Returns:
        The verdict (``equal``, ``differs``, ``nothing``, ``crashes``) and the share of the parameters gone.
    """
    try:
        pruned, masked = prune_half(dense, inputs, outputs)
        actual = outputs_of(pruned, inputs)
    except Exception:  # whatever the other package raises is the finding
        return "crashes", 0.0
    before, after = (sum(p.numel() for p in net.parameters()) for net in (dense, pruned))
    if after == before:
        return "nothing", 0.0
    difference = compare(outputs_of(masked, inputs), actual)
    return ("differs" if difference.relative > tolerance else "equal"), 1 - after / before
