"""Weights that are trained behind the zeros that a network computes with, so that they may come back.

For straight-through penalties. The network's own parameters are masked whenever somebody looks: in forward
and backward passes, in checkpoints, callbacks and exports. What the mask covers is held here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hwprune.errors import ArtifactError
from hwprune.groups.base import GroupSet
from hwprune.groups.shards import local, rows_of, whole


class HiddenWeights:
    """The dense weights without what the network shows of them: one number per weight.

    A weight w that is covered stands as 0 in the network, so that the optimiser's step d is taken from 0;
    its dense weight becomes ``(1 - lr decay) w + d``. That is the straight-through step of any optimiser with
    a decay that is decoupled from its momentum (Loshchilov and Hutter, Decoupled Weight Decay Regularization,
    ICLR 2019, arXiv 1711.05101); the optimiser's own weight decay sees 0.

    Args:
        groups: The network's; their parameters are changed in place.
        decay: What covered weights lose per step, as a multiple of the learning rate.
    """

    def __init__(self, groups: GroupSet, decay: float) -> None:
        self._groups, self._decay = groups, decay
        self._tensors: list[Tensor] = []

    @contextmanager
    def uncovered(self, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
        """Puts the dense weights into the network; what is zero there in the end is covered anew.

        Call it without gradients, after an optimiser's step.

        Args:
            optimizers: Whose learning rates the covered weights decay by.
        """
        parameters = self._groups.parameters()
        if not self._tensors:
            self._tensors = [torch.zeros_like(parameter) for parameter in parameters]
        rates = {
            id(parameter): float(group.get("lr", 1.0))
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for parameter, hidden in zip(parameters, self._tensors, strict=True):
            parameter.add_(hidden.mul_(1 - rates.get(id(parameter), 0.0) * self._decay))
            hidden.copy_(parameter)
        try:
            yield
        finally:
            for parameter, hidden in zip(parameters, self._tensors, strict=True):
                hidden.sub_(parameter)

    def forget(self) -> None:
        """Lets go of what is covered: it does not come back any more."""
        self._tensors = []

    def state(self) -> list[Tensor]:
        """Shapes of the parameters, whole where processes share them; empty where nothing is held."""
        return [whole(hidden).clone() for hidden in self._tensors]

    def load(self, state: Sequence[Tensor]) -> None:
        """Takes back what :meth:`state` gave.

        Raises:
            ArtifactError: If it is of other parameters.
        """
        parameters = self._groups.parameters()
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (parameters, state)]
        if state and shapes[0] != shapes[1]:
            raise ArtifactError(
                "the weights behind the zeros are of another network", expected=shapes[0], got=shapes[1]
            )
        self._tensors = []
        for parameter, kept in zip(parameters, state, strict=False):
            hidden, rows = torch.zeros_like(parameter), rows_of(parameter, "hidden weights")
            local(hidden).copy_(kept[rows.start : rows.start + rows.count])
            self._tensors.append(hidden)
