"""The half-space step: zero the groups that a step turns away from where they pointed.

Source: Chen et al., Only Train Once: A One-Shot Neural Network Training and Pruning Framework, NeurIPS 2021,
arXiv 2107.07467, algorithm 2 (HSPG).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from hwprune.errors import InputError
from hwprune.penalties.group_lasso import GroupLasso


@dataclass(frozen=True, slots=True)
class HalfSpace:
    """The group lasso, whose trial point is projected group by group to its half-space.

    ``y = argmin_x 1/2 |x - w'|^2 + L sum_j |x_j|`` from the optimiser's point w' is the trial; then
    ``argmin_x |x - y|^2 s.t. x_j = 0 where <y_j, w_j> < epsilon |w_j|^2``, w being the point before the step.

    Source: Chen et al. 2021, algorithm 2 (see the module). The paper takes the lasso's subgradient into the
    trial step; here it is the proximal operator, which agrees to first order in the strength.

    Attributes:
        epsilon: How much of itself a group must keep, in [0, 1); the paper's experiments use 0.

    Raises:
        InputError: If ``epsilon`` is out of range.

    >>> HalfSpace().prox_factors(torch.tensor([2.0, 0.5]), 1.0)
    tensor([0.5000, 0.0000])
    >>> HalfSpace().stays(torch.tensor([0.5, -0.1]), torch.tensor([1.0, 1.0]))
    tensor([ True, False])
    """

    epsilon: float = 0.0

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon, "HalfSpace")

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return "half-space"

    @property
    def strength_scale(self) -> float:
        """The lasso's."""
        return GroupLasso().strength_scale

    def value(self, norms: Tensor) -> Tensor:
        """The lasso's, shape ``(..., groups)`` to ``(...)``."""
        return GroupLasso().value(norms)

    def prox_factors(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        """The lasso's, shape ``(..., groups)``."""
        return GroupLasso().prox_factors(norms, strength)

    def stays(self, products: Tensor, squares: Tensor) -> Tensor:
        """The groups whose trial point is in their half-space, boolean, shape ``(..., groups)``.

        Args:
            products: ``<x_j, w_j>`` of the trial point and the point before, shape ``(..., groups)``.
            squares: ``|w_j|^2``, same shape.
        """
        return (products >= self.epsilon * squares) & (squares > 0)

    def replace_budget(self, budget: float | Tensor, cost: Tensor | None) -> Self:
        """Itself."""
        return self


def half_space_mask(trial: Tensor, current: Tensor, epsilon: float = 0.0) -> Tensor:
    """The groups that stay after a trial step.

    The half-space of group j is ``{x : <x, w_j> >= epsilon |w_j|^2}``; a group whose trial point has left it
    is projected to zero: ``argmin_x |x - trial|^2 s.t. x_j = 0 where <trial_j, w_j> < epsilon |w_j|^2``. A
    group that is zero stays zero.

    Source: Chen et al. 2021, algorithm 2 (see the module).

    Args:
        trial: The point after the trial step, shape ``(..., groups, elements)``.
        current: The point before it, same shape.
        epsilon: How much of itself a group must keep, in [0, 1).

    Returns:
        Boolean, shape ``(..., groups)``; the step is ``trial * mask[..., None]``.

    Raises:
        InputError: If the shapes differ or ``epsilon`` is out of range.

    >>> current = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> half_space_mask(torch.tensor([[0.5, 3.0], [-0.1, 3.0]]), current)
    tensor([ True, False])
    """
    if trial.shape != current.shape:
        raise InputError(
            "the points differ in shape",
            where="half_space_mask",
            expected=tuple(current.shape),
            got=tuple(trial.shape),
        )
    # Both sides scale alike; what is divided by the largest element does not underflow when it is squared.
    scale = current.abs().amax(-1, keepdim=True).double() if current.numel() else current.double()
    scale = torch.where(scale > 0, scale, 1.0)
    before, after = current / scale, trial / scale
    return HalfSpace(epsilon).stays((after * before).sum(-1), before.square().sum(-1))


def _check_epsilon(epsilon: float, where: str) -> None:
    if not 0 <= epsilon < 1:
        raise InputError("epsilon is out of range", where=where, expected="[0, 1)", got=epsilon)
