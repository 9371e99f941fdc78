"""A penalty's proximal step after every step of any torch optimiser.

The step is attached with the optimiser's own hooks, so that schedulers, gradient scalers and trainers see
the optimiser they know: nothing is wrapped, a step that a gradient scaler skips is skipped here too, and the
penalty's state travels inside the optimiser's ``state_dict``.

The metric is Euclidean for every optimiser, adaptive ones included: norms enter as shares of their layer,
so the scale of the update does not matter to which groups leave, and a group that leaves is exactly zero in
any metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hwprune.errors import ArtifactError, InputError
from hwprune.groups.base import Bundles
from hwprune.groups.channel import ChannelGroups
from hwprune.groups.costs import Budget, Widths, fit, price
from hwprune.penalties import Penalty
from hwprune.train.schedule import StrengthSchedule

#: Key of the proximal state in the optimiser's ``state_dict``.
STATE_KEY = "hwprune"
#: How often groups are bundled and priced anew between the start of the ramp and the settling.
REFRESHES = 50


class ProximalStep:
    """Drives the groups of a network to a budget, one optimiser step at a time.

    Args:
        groups: The groups; scaled in place.
        penalty: Whose proximal operator is applied; its budget and costs are refreshed on the way.
        budget: What the network may cost.
        schedule: Strength per step.
        choose: Called once, when the support settles, with the groups' scores; returns the survivors'
            widths. Defaults to :func:`~hwprune.groups.costs.fit` on the budget.

    Attributes:
        alive: Shape ``(members,)``: which members are not zero.
        step: Steps taken.
        settled: Whether the survivors are fixed.
    """

    def __init__(
        self,
        groups: ChannelGroups,
        penalty: Penalty,
        budget: Budget,
        schedule: StrengthSchedule,
        choose: Callable[[ProximalStep], Widths] | None = None,
    ) -> None:
        self.groups, self.schedule = groups, schedule
        self.budget, self.penalty = budget, penalty
        self.alive = torch.ones(groups.member_count, dtype=torch.bool)
        self.step = 0
        self.settled = False
        self.aligns: Widths = torch.tensor(groups.aligns).numpy()
        self._choose = choose or ProximalStep.fitted_widths
        self._bundles: Bundles | None = None
        self._priced: tuple[float, Tensor] = (0.0, torch.empty(0))
        self._alive_factors = torch.ones(groups.member_count)
        self._refresh_every = max(1, schedule.settle_step // REFRESHES)
        self._optimizers: list[torch.optim.Optimizer] = []

    def attach(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Applies the proximal step after every ``optimizer.step()``; returns the same optimiser.

        Args:
            optimizer: Any torch optimiser that updates the groups' parameters.

        Raises:
            InputError: If it updates none of them, or a second optimiser is attached.
        """
        if self._optimizers:
            raise InputError("an optimizer is already wrapped", hint="make one compressor per optimizer")
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(parameter) in known for parameter in self.groups.parameters()):
            raise InputError(
                "the optimizer updates no parameter that can be pruned",
                expected="an optimizer over model.parameters() of the compressor's model",
                got=f"{type(optimizer).__name__} over {len(known)} other parameters",
            )
        self._optimizers.append(optimizer)
        optimizer.register_step_post_hook(lambda *_arguments: self.after_step())
        optimizer.register_state_dict_post_hook(lambda _optimizer, state: self._save_into(state))
        optimizer.register_load_state_dict_pre_hook(lambda _optimizer, state: self._load_from(state))
        return optimizer

    def after_step(self) -> None:
        """One proximal step; called by the optimiser's hook."""
        self.step += 1
        with torch.no_grad():
            if self.settled:
                self.groups.scale_(self._alive_factors)
                return
            strength = self.schedule.strength(self.step)
            if strength > 0:
                self._shrink(strength)
            if self.step >= self.schedule.settle_step:
                self.settle()

    def _shrink(self, strength: float) -> None:
        norms = self.groups.member_norms() * self._alive_factors
        if self._bundles is None or self.step % self._refresh_every == 0:
            self.refresh(norms)
        bundles = self._bundles
        assert bundles is not None  # refresh() has just set it
        if not bundles.count:
            return
        factors = self.penalty.prox_factors(bundles.shares(norms), strength * self.penalty.strength_scale)
        members = bundles.to_members(factors, other=1.0) * self._alive_factors
        self.groups.scale_(members)
        self._bury(members > 0)

    def refresh(self, norms: Tensor) -> None:
        """Bundles the living members anew and linearises the budget at their widths."""
        bundles = self.groups.bundle(norms, self.alive)
        prices = price(self.budget, self.groups.widths_of(self.alive), self.aligns)
        per_axis = torch.from_numpy(prices.per_axis).to(norms)
        # A common factor of costs and budget changes nothing; a mean cost of 1 keeps them well scaled.
        cost = per_axis[bundles.axis_of]
        unit = float(cost.mean()) if bundles.count else 1.0
        room = max(float(cost.sum()) - prices.excess, 0.0)
        self._bundles = bundles
        self._price(room / unit, cost / unit)

    def _price(self, room: float, cost: Tensor) -> None:
        self._priced = (room, cost)
        self.penalty = self.penalty.replace_budget(room, cost)

    def _bury(self, alive: Tensor) -> None:
        """Notes which members live, and clears the momentum of those that have just died."""
        if torch.equal(alive, self.alive):
            return
        self.alive = alive
        self._alive_factors = alive.to(torch.float32)
        for optimizer in self._optimizers:
            self.groups.momenta_scale_(optimizer, self._alive_factors)

    def scores(self) -> list[Any]:
        """Per axis, the shares of its living groups from strongest to weakest, as float64 arrays."""
        norms = self.groups.member_norms() * self._alive_factors
        return self.groups.ranked_shares(norms, self.alive)

    def fitted_widths(self) -> Widths:
        """Widths that fit the budget, chosen greedily among the living groups."""
        return fit(self.budget, self.scores(), self.groups.widths_of(self.alive), self.aligns)

    def survivors(self, widths: Widths) -> Tensor:
        """The strongest living members of every axis, shape ``(members,)``, for ``widths`` of each."""
        norms = self.groups.member_norms() * self._alive_factors
        return self.groups.strongest(norms, self.alive, widths)

    def settle(self) -> None:
        """Fixes the survivors: everything else is zeroed now and after every later step."""
        if self.settled:
            return
        with torch.no_grad():
            self._bury(self.survivors(self._choose(self)))
            self.groups.scale_(self._alive_factors)
        self.settled = True

    @property
    def groups_alive(self) -> int:
        """Number of living groups, those that must stay included."""
        widths = self.groups.widths_of(self.alive)
        return int((-(-widths // self.aligns)).sum())

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs: tensors and numbers only."""
        state: dict[str, Any] = {
            "alive": self.alive.clone(),
            "step": self.step,
            "settled": self.settled,
            "limit": self.budget.limit,
        }
        if self._bundles is not None:
            room, cost = self._priced
            state["bundles"] = [self._bundles.of_member, self._bundles.axis_of]
            state["priced"] = [room, cost]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Raises:
            ArtifactError: If it is from another network.
        """
        alive = state["alive"]
        if alive.shape != self.alive.shape:
            raise ArtifactError(
                "the optimizer state is from another network",
                expected=f"{self.alive.numel()} prunable channels",
                got=alive.numel(),
            )
        self.alive = alive.to(torch.bool).clone()
        self._alive_factors = self.alive.to(torch.float32)
        self.step, self.settled = int(state["step"]), bool(state["settled"])
        self.budget = self.budget.with_limit(float(state["limit"]))
        self._bundles = None
        if "bundles" in state:
            of_member, axis_of = state["bundles"]
            room, cost = state["priced"]
            self._bundles = replace(
                self.groups.bundle(self._alive_factors, self.alive), of_member=of_member, axis_of=axis_of
            )
            self._price(float(room), cost)

    def _save_into(self, state: dict[str, Any]) -> dict[str, Any]:
        state[STATE_KEY] = self.state_dict()
        return state

    def _load_from(self, state: dict[str, Any]) -> dict[str, Any]:
        state = dict(state)
        if STATE_KEY in state:
            self.load_state_dict(state.pop(STATE_KEY))
        return state
