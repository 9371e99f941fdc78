"""The half-space step: zero the groups that a step turns away from where they pointed.

Source: Chen et al., Only Train Once: A One-Shot Neural Network Training and Pruning Framework, NeurIPS 2021,
arXiv 2107.07467, algorithm 2 (HSPG).
"""

from __future__ import annotations

from torch import Tensor

from hwprune.errors import InputError


def half_space_mask(trial: Tensor, current: Tensor, epsilon: float = 0.0) -> Tensor:
    """The groups that stay after a trial step.

    The half-space of group j is ``{x : <x, w_j> >= epsilon |w_j|^2}``; a group whose trial point has left it
    is projected to zero. A group that is zero stays zero.

    Args:
        trial: The point after the trial step, shape ``(..., groups, elements)``.
        current: The point before it, same shape.
        epsilon: How much of itself a group must keep, in [0, 1).

    Returns:
        Boolean, shape ``(..., groups)``; the step is ``trial * mask[..., None]``.

    Raises:
        InputError: If the shapes differ or ``epsilon`` is out of range.

    >>> import torch
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
    if not 0 <= epsilon < 1:
        raise InputError("epsilon is out of range", where="half_space_mask", expected="[0, 1)", got=epsilon)
    length = current.square().sum(-1)
    return ((trial * current).sum(-1) >= epsilon * length) & (length > 0)
