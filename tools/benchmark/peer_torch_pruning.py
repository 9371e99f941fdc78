"""Torch-Pruning as a contender; imported only in the environment that has it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from hwprune.train.loop import Wrap

#: Strength of the regularisers where none is asked for, the package's own default.
REGULARISATION = 1e-4
IMPORTANCES: dict[str, Callable[[], Any]] = {
    "magnitude": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "isomorphic": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "bn-scale": torch_pruning.importance.BNScaleImportance,
    "group-norm": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2, normalizer="max"),
}
PRUNERS = {
    "magnitude": torch_pruning.pruner.BasePruner,
    "isomorphic": torch_pruning.pruner.BasePruner,
    "bn-scale": torch_pruning.pruner.BNScalePruner,
    "group-norm": torch_pruning.pruner.GroupNormPruner,
}


def cut(
    network: nn.Module, example: Tensor, method: str, ratio: float, steps: Mapping[int, int]
) -> nn.Module:
    """A copy of ``network`` without a part of its channels.

    Args:
        network: Not touched.
        example: Images.
        method: A key of :data:`IMPORTANCES`.
        ratio: Part of the channels that goes, over all layers together.
        steps: By the width of a layer, what its width is to be a multiple of.
    """
    pruned = copy.deepcopy(network).eval()
    pruner(pruned, example, method, ratio, steps).step()
    return pruned.train()


def pruner(
    network: nn.Module,
    example: Tensor,
    method: str,
    ratio: float,
    steps: Mapping[int, int],
    regularisation: float = REGULARISATION,
) -> Any:
    """The package's pruner for ``network``, which it will change."""
    heads = [module for module in network.modules() if isinstance(module, nn.Linear)]
    extra = {} if method in ("magnitude", "isomorphic") else {"reg": regularisation}
    made = PRUNERS[method](
        network,
        example,
        importance=IMPORTANCES[method](),
        global_pruning=True,
        isomorphic=method == "isomorphic",
        pruning_ratio=ratio,
        max_pruning_ratio=0.95,
        round_to=max(steps.values(), default=1),
        ignored_layers=heads[-1:],
        **extra,
    )
    # The package has one step for all layers; it rounds down, also to nothing, and then leaves the whole
    # layer as it is.
    made._round_to = lambda removed, channels, step: removed_in_steps(
        removed, channels, steps.get(channels, step)
    )
    return made


def removed_in_steps(removed: int, channels: int, step: int) -> int:
    """How many channels of a layer leave so that a multiple of ``step`` stays, and at least one step.

    Args:
        removed: Channels that are weak enough to leave.
        channels: Of the layer now.
        step: What its width is to be a multiple of.
    """
    kept = max(1, (channels - removed) // step) * step
    return max(channels - kept, 0)


def regularised(network: nn.Module, example: Tensor, method: str, regularisation: float) -> Wrap:
    """Adds the gradient of the method's regulariser before every step of the optimiser.

    Args:
        network: Is trained.
        example: Images.
        method: A key of :data:`IMPORTANCES` that has one.
        regularisation: Its strength; 0: the package's default.
    """
    regulariser = pruner(network, example, method, 0.5, {}, regularisation or REGULARISATION)
    regulariser.update_regularizer()

    def wrap(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        optimizer.register_step_pre_hook(lambda *_args: regulariser.regularize(network))
        return optimizer

    return wrap
