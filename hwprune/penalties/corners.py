"""The proximal step of the exact envelope at unit cost where ``q_j = L a_j`` is 1 or more.

What is left to minimise over the openings, ``-1/2 sum_j t_j^2 u_j / (u_j + q_j (1 - u_j))`` up to a constant,
is then concave, so that a corner of ``0 <= u <= 1``, ``sum_j u_j <= B`` is a minimiser: as many groups as the
budget has whole ones are open, one more has the fraction that is left of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hwprune.penalties.base import COST_ROUNDING

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
    ordered, order = sizes.sort(dim=-1, descending=True, stable=True)
    energy = (ordered / ordered[:, :1].clamp_min(_SMALLEST)).square()
    whole = (budget * (1 + COST_ROUNDING)).floor().clamp(max=groups)[:, None]
    rest = torch.where(whole < groups, (budget[:, None] - whole).clamp(0.0, 1.0), 1.0)
    pull = pull.clamp(max=_GREATEST).expand_as(sizes).gather(-1, order)
    parts = rest / (rest + pull * (1 - rest))
    # Whichever group is open in part, the strongest of the others are whole: what each choice keeps, less
    # what the strongest have together. Of choices alike the next one after the whole groups stands.
    following = whole.long().clamp(max=groups - 1)
    kept = energy * parts - torch.maximum(energy, energy.gather(-1, following))
    stands = kept.gather(-1, following) >= kept.amax(-1, keepdim=True)
    partial = torch.where(stands, following, kept.argmax(-1, keepdim=True))
    last = whole + (partial < whole)
    ranked = (torch.arange(groups, device=norms.device) < last).double()
    ranked.scatter_(-1, partial, parts.gather(-1, partial)).masked_fill_(ordered == 0, 0.0)
    return torch.empty_like(ranked).scatter_(-1, order, ranked)
