"""The group lasso: the sum of norms, the baseline that everybody knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from hwprune.penalties.base import check_norms, check_strength, per_row


@dataclass(frozen=True, slots=True)
class GroupLasso:
    """``sum_j t_j``; with single weights as groups it is the l1 norm.

    It knows no budget: how many groups survive depends on the strength, and what is left over a budget is
    cut when the support settles.

    Source: Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006, with
    equal weights for all groups (norms come in on a common scale); the l1 norm is the lasso of Tibshirani,
    Regression shrinkage and selection via the lasso, 1996.

    Attributes:
        name: What the command line calls it.

    >>> GroupLasso().prox_factors(torch.tensor([2.0, 0.5]), 1.0)
    tensor([0.5000, 0.0000])
    """

    name: str = "group-lasso"

    @property
    def strength_scale(self) -> float:
        """Every group loses the strength itself, not a fraction of its norm."""
        return 0.01

    def value(self, norms: Tensor) -> Tensor:
        """Shape ``(..., groups)`` to ``(...)``."""
        check_norms(norms)
        return norms.sum(-1)

    def prox_factors(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        """``argmin_x 1/2 |x - w|^2 + L sum_j |x_j|`` is ``max(1 - L / t_j, 0) w_j``.

        Args:
            norms: Shape ``(..., groups)``.
            strength: ``L``: a number, or a tensor of shape ``()`` or ``(...)``.

        Returns:
            Shape ``(..., groups)``.
        """
        check_norms(norms)
        return soft_factors(norms, per_row(strength, norms))

    def replace_budget(self, budget: float | Tensor, cost: Tensor | None) -> Self:
        """Itself."""
        return self


def soft_factors(norms: Tensor, threshold: Tensor) -> Tensor:
    """``max(1 - threshold / t, 0)``, and 1 wherever the threshold is 0.

    Args:
        norms: Any shape.
        threshold: Broadcasts against them, not negative.

    >>> soft_factors(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
    tensor([0.5000, 0.0000, 1.0000])
    """
    lost = torch.where(threshold > 0, threshold / norms, 0.0)
    return (1 - lost).clamp_min(0.0)


def soft_threshold(weights: Tensor, strength: float | Tensor) -> Tensor:
    """``argmin_x 1/2 |x - w|^2 + L sum_i |x_i|`` for single weights: ``sign(w) max(|w| - L, 0)``.

    Source: Donoho, De-noising by soft-thresholding, 1995.

    Args:
        weights: Any shape.
        strength: ``L``; a tensor broadcasts against the weights.

    Raises:
        InputError: If the strength is negative, infinite or NaN.

    >>> soft_threshold(torch.tensor([-2.0, 0.5]), 1.0)
    tensor([-1.,  0.])
    """
    check_strength(strength)
    return weights.sign() * (weights.abs() - strength).clamp_min(0.0)
