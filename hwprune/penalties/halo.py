"""HALO, the hierarchical adaptive lasso: a lasso whose weights are found along with the network, on groups.

Source: Seto, Wells and Zhang, HALO: Learning to Prune Neural Networks with Shrinkage, SDM 2021, arXiv
2008.10183, with the norm ``t_j`` of a group in the place of a weight's magnitude.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from hwprune.errors import InputError
from hwprune.penalties.base import check_norms, check_number, per_row
from hwprune.penalties.group_lasso import soft_factors


@dataclass(frozen=True, slots=True)
class Halo:
    """``xi sum_j t_j / l_j^2 + psi | sum_j |l_j| - P |`` in the norms t and the coefficients l.

    The coefficients are state, started at 1 (:meth:`start`) and trained along by gradient descent
    (:meth:`coefficient_gradient`); whoever owns the optimiser owns them, decays and saves them. They belong
    to groups, so the groups must stay the same.

    Attributes:
        xi: Weight of the lasso, not negative.
        psi: Weight of the coefficients' budget, not negative.
        total: P, what the magnitudes of the coefficients should add up to.

    Raises:
        InputError: If a weight or the total is negative or not finite.

    >>> halo = Halo(xi=1.0, psi=0.5, total=1.0)
    >>> norms = torch.tensor([2.0, 4.0])
    >>> halo.value(norms, halo.start(norms))
    tensor(6.5000)
    >>> halo.prox_factors(norms, 0.5, torch.tensor([1.0, 0.5]))
    tensor([0.7500, 0.5000])
    """

    xi: float
    psi: float
    total: float

    def __post_init__(self) -> None:
        for name, weight in (("xi", self.xi), ("psi", self.psi), ("total", self.total)):
            check_number(name, weight, "Halo")
            if not 0 <= weight < float("inf"):
                raise InputError(f"{name} is out of range", where="Halo", expected="[0, inf)", got=weight)

    def start(self, norms: Tensor) -> Tensor:
        """The coefficients to begin with: ones, shape ``(..., groups)``."""
        return torch.ones_like(norms)

    def value(self, norms: Tensor, coefficients: Tensor) -> Tensor:
        """The penalty, shape ``(...)``, differentiable in the norms and the coefficients.

        Args:
            norms: Shape ``(..., groups)``.
            coefficients: Likewise; none is 0.
        """
        _check_coefficients(norms, coefficients)
        excess = coefficients.abs().sum(-1) - self.total
        return self.xi * (norms / coefficients.square()).sum(-1) + self.psi * excess.abs()

    def prox_factors(self, norms: Tensor, strength: float | Tensor, coefficients: Tensor) -> Tensor:
        """``argmin_x 1/2 |x - w|^2 + L value(x, l)`` at fixed l: ``max(1 - L xi / (l_j^2 t_j), 0) w_j``.

        Args:
            norms: Shape ``(..., groups)``.
            strength: ``L``: a number, or a tensor of shape ``()`` or ``(...)``.
            coefficients: Shape ``(..., groups)``; none is 0.

        Returns:
            Shape ``(..., groups)``, in [0, 1].
        """
        _check_coefficients(norms, coefficients)
        return soft_factors(norms, per_row(strength, norms) * self.xi / coefficients.square())

    def coefficient_gradient(self, norms: Tensor, coefficients: Tensor) -> Tensor:
        """The gradient of :meth:`value` in the coefficients, shape ``(..., groups)``.

        ``-2 xi t_j / l_j^3 + psi sign(sum |l| - P) sign(l_j)``: strong groups drive their coefficient up and
        so free themselves of the lasso, weight decay on the coefficients drives the others down.

        Args:
            norms: Shape ``(..., groups)``.
            coefficients: Likewise; none is 0.
        """
        _check_coefficients(norms, coefficients)
        excess = coefficients.abs().sum(-1, keepdim=True) - self.total
        pull = self.psi * excess.sign() * coefficients.sign()
        return pull - 2 * self.xi * norms / coefficients.pow(3)


@dataclass(frozen=True, slots=True)
class TrainedHalo:
    """HALO with its coefficients trained along by gradient descent with weight decay, as published.

    Source: Seto, Wells and Zhang 2021 (see the module).

    The objective in the coefficients is :class:`Halo`'s plus ``decay/2 sum_j l_j^2``, with P = ``mean`` times
    the number of groups. Without the term in psi a coefficient rests where ``l^4 = 2 xi t / decay``: strong
    groups free themselves of the lasso, weak ones feel more of it. The default decay puts the coefficient
    of a group of norm 0.1, a typical share of its layer, to rest at 1.

    Attributes:
        xi: Weight of the lasso, positive.
        psi: Weight of the coefficients' budget, not negative.
        mean: What the magnitudes of the coefficients should be on average, positive.
        decay: Weight decay on the coefficients, not negative.
        rate: Their learning rate as a multiple of the strength.
        least: Coefficients are kept at or above it, away from the pole of the penalty at 0, where its
            gradient would throw them out of reach in one step.

    Raises:
        InputError: If a number is out of range.

    >>> halo = TrainedHalo(psi=0.0, decay=0.0, rate=1.0)
    >>> norms = torch.tensor([2.0, 4.0])
    >>> halo.advance(norms, 0.5, halo.start(norms))
    (tensor([0.7500, 0.8750]), {'coefficients': tensor([3., 5.])})
    """

    xi: float = 1.0
    psi: float = 0.02
    mean: float = 1.0
    decay: float = 0.2
    rate: float = 100.0
    least: float = 0.3

    def __post_init__(self) -> None:
        for name in ("xi", "psi", "mean", "decay", "rate", "least"):
            check_number(name, getattr(self, name), "TrainedHalo")
        for name in ("xi", "mean", "rate", "least"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is not positive", where="TrainedHalo", got=getattr(self, name))
        for name in ("psi", "decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is negative", where="TrainedHalo", got=getattr(self, name))

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return "halo"

    @property
    def strength_scale(self) -> float:
        """Every group loses a multiple of the strength, not a fraction of its norm."""
        return 0.01

    def value(self, norms: Tensor) -> Tensor:
        """At the coefficients' start, shape ``(..., groups)`` to ``(...)``."""
        return self._halo(norms).value(norms, torch.ones_like(norms))

    def prox_factors(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        """``argmin_x 1/2 |x - w|^2 + L xi sum_j |x_j|``: :meth:`Halo.prox_factors` at the start.

        Args:
            norms: Shape ``(..., groups)``.
            strength: ``L``: a number, or a tensor of shape ``()`` or ``(...)``.

        Returns:
            Shape ``(..., groups)``, in [0, 1].
        """
        return self._halo(norms).prox_factors(norms, strength, torch.ones_like(norms))

    def start(self, norms: Tensor) -> dict[str, Tensor]:
        """Coefficients of 1."""
        return {"coefficients": self._halo(norms).start(norms)}

    def advance(
        self, norms: Tensor, strength: float, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``argmin_x 1/2 |x - w|^2 + L xi sum_j |x_j| / l_j^2`` as factors, and l for the next step.

        The step in l is gradient descent at the norms of w, as in the paper, where both are trained at once.
        """
        coefficients, halo = state["coefficients"], self._halo(norms)
        gradient = halo.coefficient_gradient(norms, coefficients) + self.decay * coefficients
        moved = (coefficients - self.rate * strength * gradient).clamp_min(self.least)
        return halo.prox_factors(norms, strength, coefficients), {"coefficients": moved}

    def replace_budget(self, budget: float | Tensor, cost: Tensor | None) -> Self:
        """Itself: it knows no budget."""
        return self

    def _halo(self, norms: Tensor) -> Halo:
        groups = norms.shape[-1] if norms.ndim else 0  # a scalar is refused by whatever reads it
        return Halo(self.xi, self.psi, self.mean * groups)


@dataclass(frozen=True, slots=True)
class ProfiledHalo:
    """HALO with its coefficients at their best for the current norms, instead of trained behind them.

    Where they must add up to the number m of groups, ``min_l sum_j t_j / l_j^2`` is at ``l_j``
    proportional to ``t_j^(1/3)``, which leaves a function of the norms alone,

        value(t) = (sum_j t_j^(1/3))^3 / m^2,

    concave in every norm. It has no state, so groups may be formed anew during training. One proximal step is
    HALO's at these coefficients: a step of the majorise-minimise algorithm, after which the value is not
    greater. It knows no budget.

    Source: derived here from HALO's objective (see the module) with ``sum_j l_j = m`` as a constraint; the
    reweighting is that of Candes, Wakin and Boyd, Enhancing Sparsity by Reweighted l1 Minimization, 2008.

    >>> ProfiledHalo().value(torch.tensor([8.0, 1.0]))
    tensor(6.7500)
    >>> ProfiledHalo().coefficients(torch.tensor([8.0, 1.0]))
    tensor([1.3333, 0.6667])
    >>> ProfiledHalo().prox_factors(torch.tensor([8.0, 1.0]), 1.0)
    tensor([0.9297, 0.0000])
    """

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return "profiled-halo"

    @property
    def strength_scale(self) -> float:
        """Every group loses a multiple of the strength, not a fraction of its norm."""
        return 0.01

    def coefficients(self, norms: Tensor) -> Tensor:
        """The best coefficients, shape ``(..., groups)``, of mean 1; ones where all norms are 0."""
        check_norms(norms)
        roots = norms.pow(1 / 3)
        mean = roots.mean(-1, keepdim=True)
        return torch.where(mean > 0, roots / torch.where(mean > 0, mean, 1.0), 1.0)

    def value(self, norms: Tensor) -> Tensor:
        """Shape ``(..., groups)`` to ``(...)``."""
        check_norms(norms)
        groups = norms.shape[-1]
        return norms.pow(1 / 3).sum(-1).div(max(groups, 1) ** (2 / 3)).pow(3)

    def prox_factors(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        """``argmin_x 1/2 |x - w|^2 + L sum_j |x_j| / l_j^2`` at the best l of w.

        The factors are ``max(1 - L / (l_j^2 t_j), 0)``; groups of norm 0 get 0 unless L is 0.

        Args:
            norms: Shape ``(..., groups)``.
            strength: ``L``: a number, or a tensor of shape ``()`` or ``(...)``.

        Returns:
            Shape ``(..., groups)``, in [0, 1].
        """
        coefficients = self.coefficients(norms)
        lost = torch.where(norms > 0, coefficients.square() * norms, 0.0)
        return soft_factors(lost, per_row(strength, norms))

    def replace_budget(self, budget: float | Tensor, cost: Tensor | None) -> Self:
        """Itself."""
        return self


def _check_coefficients(norms: Tensor, coefficients: Tensor) -> None:
    check_norms(norms)
    if coefficients.shape != norms.shape:
        raise InputError(
            "the coefficients do not fit the norms",
            where="Halo",
            expected=f"shape {tuple(norms.shape)}",
            got=f"shape {tuple(coefficients.shape)}",
        )
    if not bool((coefficients.isfinite() & (coefficients != 0)).all()):
        raise InputError("every coefficient must be finite and not 0", where="Halo")
