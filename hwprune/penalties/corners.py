"""The proximal step of the exact envelope at unit cost where ``q_j = L a_j`` is 1 or more.

What is left to minimise over the openings, ``-1/2 sum_j t_j^2 u_j / (u_j + q_j (1 - u_j))`` up to a constant,
is then concave, so that a corner of ``0 <= u <= 1``, ``sum_j u_j <= B`` is a minimiser: as many groups as the
budget has whole ones are open, one more has the fraction that is left of it. They are selected, not sorted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hwprune.penalties.base import COST_ROUNDING
from hwprune.penalties.magnitude import largest

_GREATEST, _SMALLEST = 1e300, 1e-300


def corner_factors(norms: Tensor, pull: Tensor, budget: Tensor) -> Tensor:
    """The factors of the best corner of every row.

    Args:
        norms: Shape ``(rows, groups)``.
        pull: ``q``, shape ``(rows or 1, groups or 1)``, float64, at least 1.
        budget: Groups that may be open, shape ``(rows,)``, float64.

    Returns:
        Shape ``(rows, groups)``, float64; of tied groups the first ones stay, and zeros get 0.

    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> corner_factors(torch.tensor([[2.0, 2.0, 2.0]]), 3 * one, 1.5 * one[0])
    tensor([[1.0000, 0.2500, 0.0000]], dtype=torch.float64)
    """
    groups = norms.shape[-1]
    sizes = norms.double()
    energy = (sizes / sizes.amax(-1, keepdim=True).clamp_min(_SMALLEST)).square()
    count = (budget * (1 + COST_ROUNDING)).floor().clamp(max=groups).long()
    rest = torch.where(count < groups, (budget - count).clamp(0.0, 1.0), 1.0)[:, None]
    parts = rest / (rest + pull.clamp(max=_GREATEST) * (1 - rest))
    opened = torch.zeros_like(sizes)
    for whole in sorted(set(count.tolist())):
        rows = count == whole
        opened[rows] = largest(sizes[rows], whole).double()
    # Whichever group is open in part, the strongest of the others are whole: what each choice keeps, less
    # what the strongest have together. Of choices alike the next one after the whole groups stands.
    following = sizes.masked_fill(opened > 0, -1.0).argmax(-1, keepdim=True)
    kept = energy * parts - torch.maximum(energy, energy.gather(-1, following))
    stands = kept.gather(-1, following) >= kept.amax(-1, keepdim=True)
    partial = torch.where(stands, following, kept.argmax(-1, keepdim=True))
    # A whole group that is to be open in part makes room for the next one.
    room = torch.maximum(opened.gather(-1, following), opened.gather(-1, partial))
    opened.scatter_(-1, following, room)
    opened.scatter_(-1, partial, parts.expand_as(sizes).gather(-1, partial))
    return opened.masked_fill_(sizes == 0, 0.0)
