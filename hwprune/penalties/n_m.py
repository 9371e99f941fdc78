"""N:M sparsity: masks of the N largest of every M weights, and the gradient of SR-STE.

Source: Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, ICLR 2021,
arXiv 2102.04010. A convex alternative is :class:`~hwprune.penalties.GroupEnvelope` with one row per block.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from hwprune.errors import InputError
from hwprune.penalties.base import check_number
from hwprune.penalties.magnitude import HardThreshold

#: The paper's ``lambda_w``.
DECAY = 2e-4


@dataclass(frozen=True, slots=True, eq=False)
class StraightThrough(HardThreshold):
    """SR-STE: a projection at every step, behind which the dense weights are trained on.

    ``prox_factors`` is :class:`HardThreshold`'s, ``argmin_x 1/2 |x - w|^2 s.t. sum_j c_j [x_j != 0] <= B``,
    of the dense weights w. The network computes with x; w takes its gradient, and what is not in x decays,
    see :func:`sr_ste_gradient`. So a weight comes back that becomes larger than one that is shown. With a row
    of norms per block of M and a budget of N it is the paper's N:M sparsity; with one row, the same over all
    weights.

    Source: Zhou et al. 2021 (see the module), equations 8 and 9.

    Attributes:
        covered_decay: The paper's ``lambda_w``, not negative.

    Raises:
        InputError: If a cost is not positive, or the budget or the decay is negative.

    >>> StraightThrough(budget=1).prox_factors(torch.tensor([[2.0, 0.5], [0.1, 0.2]]), 0.1)
    tensor([[1., 0.],
            [0., 1.]])
    """

    covered_decay: float = DECAY

    def __post_init__(self) -> None:
        # super() without arguments does not find the class that slots put in this one's place.
        HardThreshold.__post_init__(self)
        check_number("covered_decay", self.covered_decay, "StraightThrough")
        if not 0 <= self.covered_decay < float("inf"):
            raise InputError(
                "covered_decay is out of range",
                where="StraightThrough",
                expected="[0, inf)",
                got=self.covered_decay,
            )

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return "sr-ste"


def nm_mask(weights: Tensor, n: int, m: int) -> Tensor:
    """Which weights are among the ``n`` largest magnitudes of their block of ``m``.

    ``mask * w`` is ``argmin_x |x - w|^2`` over the x of whose blocks each has at most ``n`` that are not
    zero.

    Args:
        weights: Shape ``(..., inputs)``; blocks are consecutive along the last dimension.
        n: Weights that every block keeps; of ties the first ones stay.
        m: Weights per block.

    Returns:
        Boolean, same shape; exactly ``n`` of every block are true.

    Raises:
        InputError: If the blocks do not divide the inputs, not ``0 <= n <= m``, or a weight is not finite.

    >>> nm_mask(torch.tensor([1.0, -3.0, 2.0, 0.5]), 2, 4)
    tensor([False,  True,  True, False])
    """
    if not (isinstance(n, Integral) and isinstance(m, Integral) and 0 <= n <= m and m >= 1):
        raise InputError(
            "no N:M pattern", where="nm_mask", expected="whole numbers, 0 <= n <= m, m >= 1", got=f"{n}:{m}"
        )
    if weights.ndim == 0 or weights.shape[-1] % m:
        raise InputError(
            f"blocks of {m} do not divide the weights",
            where="nm_mask",
            expected=f"a last dimension that is a multiple of {m}",
            got=tuple(weights.shape),
            hint="leave this layer dense, or choose another pattern for it",
        )
    if not bool(torch.isfinite(weights.detach()).all()):
        raise InputError(
            "the weights are not finite",
            where="nm_mask",
            expected="finite numbers",
            hint="a loss that is not finite usually causes this: lower the learning rate",
        )
    blocks = weights.detach().abs().reshape(*weights.shape[:-1], weights.shape[-1] // m, m)
    largest = blocks.sort(dim=-1, descending=True, stable=True).indices[..., :n]
    mask = torch.zeros_like(blocks, dtype=torch.bool)
    return mask.scatter(-1, largest, True).reshape(weights.shape)


def sr_ste_gradient(gradient: Tensor, weights: Tensor, mask: Tensor, decay: float = DECAY) -> Tensor:
    """The gradient that the dense weights take: straight through, and the masked ones decay.

    No proximal operator: the weights stay dense, and the network computes with ``mask * w``. It is what
    ``F(mask * w) + decay / 2 |(1 - mask) * w|^2`` would give if the mask, fixed for the step, let the
    gradient of F pass as if it were 1 (equation 9 of the paper).

    Args:
        gradient: Of the loss in the masked weights ``mask * w``, any shape.
        weights: The dense weights, same shape.
        mask: As :func:`nm_mask` gives it, same shape.
        decay: The paper's ``lambda_w``.

    Returns:
        ``gradient + decay * (1 - mask) * weights``.

    >>> weights = torch.tensor([1.0, -3.0])
    >>> sr_ste_gradient(torch.zeros(2), weights, nm_mask(weights, 1, 2), decay=0.5)
    tensor([0.5000, 0.0000])
    """
    return gradient + decay * torch.where(mask, 0.0, weights)
