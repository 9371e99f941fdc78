"""The weighted group sparse envelope, plain and exact, with costs.

Source: the plain form with unit cost is the Weighted Group Sparse Envelope Function (arXiv 2212.12921); the
cost-weighted budget and the exact (debiased) form are derived in ``docs/envelope.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from hwprune.errors import InputError
from hwprune.penalties.base import (
    COST_ROUNDING,
    Solution,
    check_budget,
    check_norm_type,
    check_norms,
    check_positive,
    check_strength,
    fitted,
    in_rows,
    only_number,
    whole_budget,
    whole_number,
)
from hwprune.penalties.corners import corner_factors
from hwprune.penalties.firm import GREATEST_RATIO, SAFE_RANGE, FirmRow
from hwprune.penalties.ramps import Tiles, row_slices, working_dtype
from hwprune.penalties.roots import solve_root
from hwprune.penalties.steps import make_step, scaled, solve_rows

#: Strengths below it do what it does, and their product with a ridge could be 0.
_LEAST_STRENGTH = 1e-200


@dataclass(frozen=True, slots=True, eq=False)
class GroupEnvelope:
    """``S(w) = 1/2 min_u sum_j a_j t_j^2 / u_j  s.t. 0 <= u <= 1, sum_j c_j u_j <= B``, and its exact form.

    With unit cost and an integer budget k this is the biconjugate of ``1/2 sum_j a_j t_j^2`` restricted to
    at most k non-zero groups (WGSEF; GSEF with unit ridge; SEF, half the squared k-support norm, with
    single elements). With unequal costs that biconjugate is hidden behind a knapsack, and S is its continuous
    relaxation: a convex lower bound.

    The exact form, ``debias=True``, is ``G(w) = S(w) - 1/2 sum_j a_j t_j^2``: with unit cost it is zero
    exactly on the networks within the budget, so survivors are not shrunk.

    Source: the plain form at unit cost, arXiv 2212.12921; the rest, ``docs/envelope.md``.

    Attributes:
        budget: Groups, or the sum of costs, that may stay: a number, or a tensor of shape ``(...)``.
        ridge: ``a``, shape ``(groups,)``, positive; ``None`` for ones.
        cost: ``c``, shape ``(groups,)``, positive; ``None`` for ones.
        debias: Whether :meth:`value` and the prox are those of the exact form.

    Raises:
        InputError: If a weight is not positive or the budget is negative.

    >>> envelope = GroupEnvelope(budget=1, debias=False)
    >>> envelope.value(torch.tensor([3.0, 4.0], dtype=torch.float64))
    tensor(24.5000, dtype=torch.float64)
    >>> GroupEnvelope(budget=1).value(torch.tensor([3.0, 0.0]))
    tensor(0.)
    >>> GroupEnvelope(budget=1).prox_factors(torch.tensor([3.0, 1.0]), strength=0.2)
    tensor([0.9722, 0.4167])
    """

    budget: float | Tensor = float("inf")
    ridge: Tensor | None = None
    cost: Tensor | None = None
    debias: bool = True

    def __post_init__(self) -> None:
        check_positive("ridge", self.ridge, "GroupEnvelope")
        check_positive("cost", self.cost, "GroupEnvelope")
        check_budget(self.budget, "GroupEnvelope")

    @property
    def name(self) -> str:
        """What the command line calls it."""
        return "envelope" if self.debias else "wgsef"

    @property
    def strength_scale(self) -> float:
        """The plain form shrinks survivors at every step and bears far less strength."""
        return 1.0 if self.debias else 0.01

    def replace_budget(self, budget: float | Tensor, cost: Tensor | None) -> Self:
        """The same envelope with another budget and costs."""
        return replace(self, budget=budget, cost=cost)

    def value(self, norms: Tensor) -> Tensor:
        """The envelope, S or (``debias``) G, differentiable in the norms.

        Args:
            norms: Shape ``(..., groups)``.

        Returns:
            Shape ``(...)``; infinite where the budget is 0 and a norm is not.

        Raises:
            InputError: If a norm is negative, infinite or NaN, or the budget or a weight does not fit them.
        """
        check_norms(norms)
        if not norms.numel():
            return norms.sum(-1)
        # S(t) = z^2 S(t / z); norms of about 1 have squares that are numbers.
        scale = norms.detach().amax(-1, keepdim=True).double()
        scale = torch.where(scale > 0, scale, 1.0)
        shares = norms.double() / scale
        energy = fitted("ridge", self.ridge, norms) * shares.square()
        # By the envelope theorem the gradient is the one at fixed u.
        opened = self._best_openings(shares.detach())
        spread = energy / torch.where(opened > 0, opened, 1.0)
        closed = (shares.detach() > 0) & (self._budget_rows(norms).reshape(scale.shape) <= 0)
        spread = torch.where(closed, torch.inf, spread - energy if self.debias else spread)
        return (spread.sum(-1) / 2 * scale[..., 0] * scale[..., 0]).to(norms.dtype)

    def conjugate(self, norms: Tensor) -> Tensor:
        """``S*(y) = 1/2 max_u sum_j u_j t_j(y)^2 / a_j  s.t. 0 <= u <= 1, sum_j c_j u_j <= B``.

        The conjugate of the plain form: at unit cost half the sum of the k largest ``t_j^2 / a_j``, else a
        knapsack whose items may be cut, filled in the order of what they give per cost. The exact form is not
        convex and has no conjugate of interest (0 at 0, infinite elsewhere), so ``debias`` makes no
        difference here. A fraction of the budget counts as that fraction of one group.

        Source: ``docs/envelope.md``; the knapsack: Dantzig, Discrete-variable extremum problems, 1957.

        Args:
            norms: Norms of the dual variable, shape ``(..., groups)``.

        Returns:
            Shape ``(...)``.

        >>> GroupEnvelope(budget=1).conjugate(torch.tensor([3.0, 4.0]))
        tensor(8.)
        >>> cost = torch.tensor([1.0, 4.0])
        >>> GroupEnvelope(budget=3, cost=cost).conjugate(torch.tensor([3.0, 4.0]))  # (9 + 16 / 2) / 2
        tensor(8.5000)
        """
        check_norms(norms)
        # Square roots of weights first, and norms of about 1: neither overflows where the result does not.
        lengths = norms.double() / fitted("ridge", self.ridge, norms).sqrt()
        scale = lengths.detach().amax(-1, keepdim=True) if norms.numel() else lengths
        scale = scale.clamp_max(torch.finfo(torch.float64).max)
        energy = (lengths / torch.where(scale > 0, scale, 1.0)).square()
        budget = self._budget_rows(norms).reshape(*norms.shape[:-1], 1)
        filled = self._filled if self.cost is None else self._filled_by_cost
        shares = filled(energy, budget) / 2
        return (shares * scale.amax(-1) * scale.amax(-1)).to(norms.dtype) if norms.numel() else norms.sum(-1)

    @staticmethod
    def _filled(energy: Tensor, budget: Tensor) -> Tensor:
        """The most energy that fits at unit cost, shape ``(...)``; the budget has shape ``(..., 1)``."""
        groups, most = energy.shape[-1], float(budget.max()) if budget.numel() else 0.0
        strongest = energy.topk(groups if most >= groups else -int(-most // 1), dim=-1).values
        ranks = torch.arange(strongest.shape[-1], device=energy.device, dtype=torch.float64)
        return ((budget - ranks).clamp(0.0, 1.0) * strongest).sum(-1)

    def _filled_by_cost(self, energy: Tensor, budget: Tensor) -> Tensor:
        """Likewise with costs."""
        cost = fitted("cost", self.cost, energy).expand_as(energy)
        order = (energy / cost).sort(dim=-1, descending=True).indices
        price = cost.gather(-1, order)
        before = price.cumsum(-1) - price
        return (((budget - before) / price).clamp(0.0, 1.0) * energy.gather(-1, order)).sum(-1)

    def prox_factors(self, norms: Tensor, strength: float | Tensor) -> Tensor:
        """The factors ``f_j`` of :meth:`solve`, shape ``(..., groups)``, in [0, 1]."""
        return self.solve(norms, strength).factors

    @torch.no_grad()
    def solve(
        self,
        norms: Tensor,
        strength: float | Tensor,
        start: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Solution:
        """``argmin_x 1/2 |x - w|^2 + L S(x)`` (``debias``: ``L G(x)``) as factors on the groups.

        The exact form's objective is convex while ``L a_j <= 1``. Where all costs are equal and every
        ``L a_j >= 1``, the factors are those of a minimiser, which keeps as many of the strongest groups as
        the budget has whole ones and at most one more in part; of ties the first ones stay. Otherwise
        ``L a_j`` beyond 1 acts like 1, where groups are opened in the order of ``t_j^2 / c_j`` until the
        budget is used up: not always a minimiser. Groups whose ``t_j / sqrt(c_j)`` differ by less than 2^-26
        of themselves may then share what is left of the budget, as ties do. In the plain form ``L a_j``
        beyond 2^26 acts like that in the openings, whose ramps are then steps. The time is linear in the
        number of groups.

        Args:
            norms: Shape ``(..., groups)``; groups of norm 0 get the factor 0 unless ``L`` is 0.
            strength: ``L``, not negative: a number, or a tensor of shape ``()`` or ``(...)``.
            start: Root of an earlier step, shape ``(..., 1)``, to start from. Only the speed depends on it.
            out: Where the factors are written: contiguous, of the norms' shape and type; the norms
                themselves will do. With many groups, fresh memory is what costs most.

        Returns:
            Factors in the type of the norms, and the root.

        Raises:
            InputError: If a norm or the strength is negative, infinite or NaN, or if the strength, the
                budget, the weights, ``start`` or ``out`` do not fit the norms.

        >>> solution = GroupEnvelope(budget=1).solve(torch.tensor([3.0, 1.0]), strength=0.2)
        >>> solution.factors, solution.root
        (tensor([0.9722, 0.4167]), tensor([0.3000], dtype=torch.float64))
        """
        check_norm_type(norms)
        factors = _checked_output(out, norms)
        check_strength(strength)
        shape = (*norms.shape[:-1], 1)
        start = _checked_start(start, shape)
        row, budget = self._firm_row(norms, strength), only_number(self.budget)
        if row is not None and budget is not None:
            root = row.root(whole_number(budget), None if start is None else float(start))
            if root is not None:
                row.factors_into(factors.view(-1), root)
                return Solution(factors, norms.new_full(shape, root, dtype=torch.float64))
        greatest = check_norms(norms)
        strengths = in_rows("strength", strength, norms).reshape(-1)
        if not norms.numel() or not bool(strengths.any()):
            return Solution(factors.fill_(1.0), norms.new_zeros(shape, dtype=torch.float64))
        # One strength for all rows lets them open alike, which is faster.
        strengths = strengths if only_number(strength) is None else strengths[:1]
        roots = self._solve_rows(norms, strengths, greatest, start, factors)
        if strengths.numel() > 1:
            factors[strengths.reshape(norms.shape[:-1]) == 0] = 1.0
        return Solution(factors, roots.reshape(shape))

    def _firm_row(self, norms: Tensor, strength: float | Tensor) -> FirmRow | None:
        """The only row as a :class:`FirmRow`, where it is one."""
        alike = self.ridge is None and self.cost is None and norms.numel() == norms.shape[-1] > 0
        pull = only_number(strength)
        if not alike or norms.dtype != torch.float32 or pull is None:
            return None
        kept = 1 - pull if self.debias else 1.0
        if not 0 < pull <= GREATEST_RATIO * kept:
            return None
        return FirmRow(norms.detach().reshape(-1), kept, pull)

    def _solve_rows(
        self, norms: Tensor, strengths: Tensor, greatest: float, start: Tensor | None, factors: Tensor
    ) -> Tensor:
        """Fills in the factors for strengths of shape ``(rows or 1,)``; the roots, shape ``(rows,)``."""
        rows = norms.detach().reshape(-1, norms.shape[-1])
        ridge = fitted("ridge", self.ridge, norms)[:, None]
        cost = fitted("cost", self.cost, norms)[:, None]
        # Rows of strength 0 are overwritten; any other strength keeps them free of 0 / 0.
        used = torch.where(strengths > 0, strengths.clamp_min(_LEAST_STRENGTH), 1.0)
        step = make_step(ridge, cost, used, debias=self.debias)
        unit = step.unit
        if not SAFE_RANGE[0] < greatest < SAFE_RANGE[1] and greatest > 0:
            largest = rows.double().amax(-1)
            largest = torch.where(largest > 0, largest, 1.0)
            rows, unit = rows.double() / largest[:, None], unit * largest
        begin = None if start is None else start.detach().to(rows.device, torch.float64).reshape(-1) * unit
        dtype = working_dtype(rows, step.ramps)
        budget = self._budget_rows(norms)
        budget = whole_budget(budget) if self.cost is None else budget
        # The factors may be written over the norms.
        corners = self._corner_rows(rows, strengths[:, None] * ridge.T, cost, budget) if self.debias else None
        roots = solve_rows(rows, step, budget, begin, dtype, factors.view(rows.shape))
        if corners is not None:
            steep, best = corners
            factors.view(rows.shape)[steep] = best.to(factors.dtype)
        return roots / unit

    @staticmethod
    def _corner_rows(
        rows: Tensor, pull: Tensor, cost: Tensor, budget: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The rows that are solved by a corner, as flags and their factors; ``None`` where there are none."""
        steep = pull.amin(-1) >= 1
        if not (bool(steep.any()) and bool((cost == cost[0]).all())):
            return None
        whole = steep.expand(rows.shape[0])
        pull = pull[steep] if pull.shape[0] > 1 else pull
        return whole, corner_factors(rows[whole], pull, budget[whole] / cost[0])

    def _best_openings(self, norms: Tensor) -> Tensor:
        """The minimising u of S at norms of shape ``(..., groups)``, float64."""
        ridge = fitted("ridge", self.ridge, norms)[:, None]
        cost = fitted("cost", self.cost, norms)[:, None]
        ramps, _ = scaled((ridge / cost).sqrt(), torch.zeros_like(ridge[:1]), cost)
        flat, budget = norms.reshape(-1, norms.shape[-1]), self._budget_rows(norms)
        opened = torch.empty_like(flat)
        for rows in row_slices(flat):
            tiles = Tiles(flat[rows], ramps, torch.float64)
            for tile, _ in tiles.open(solve_root(tiles, budget[rows])):
                opened[rows, tile.groups] = tile.opened.clamp_(0.0, 1.0).T
        # Where everything fits, the root is only near infinity; the value is to be 0 exactly there.
        fits = torch.where(flat > 0, cost.T, 0.0).sum(-1) <= budget * (1 + COST_ROUNDING)
        return opened.masked_fill_(fits[:, None], 1.0).reshape(norms.shape)

    def _budget_rows(self, norms: Tensor) -> Tensor:
        """The budget of every row, shape ``(rows,)``, float64."""
        return in_rows("budget", self.budget, norms).reshape(-1)


def _checked_start(start: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """One root per row, or none."""
    if start is not None and not (isinstance(start, Tensor) and start.numel() == math.prod(shape)):
        raise InputError(
            "the start does not fit the norms",
            where="GroupEnvelope.solve",
            expected=f"the root of an earlier step, shape {shape}",
            got=f"shape {tuple(start.shape)}" if isinstance(start, Tensor) else type(start).__name__,
        )
    return start


def _checked_output(out: Tensor | None, norms: Tensor) -> Tensor:
    """Where the factors go."""
    if out is None:
        return torch.empty(norms.shape, dtype=norms.dtype, device=norms.device)
    if out.shape != norms.shape or out.dtype != norms.dtype or not out.is_contiguous():
        raise InputError(
            "the output does not fit the norms",
            where="GroupEnvelope.solve",
            expected=f"contiguous, {norms.dtype}, shape {tuple(norms.shape)}",
            got=f"{out.dtype}, shape {tuple(out.shape)}",
        )
    return out
