"""A penalty's proximal step after every step of any torch optimiser.

The step is attached with the optimiser's own hooks, so that schedulers, gradient scalers and trainers see
the optimiser they know: nothing is wrapped, a step that a gradient scaler skips is skipped here too, and the
penalty's state travels inside the optimiser's ``state_dict``. It stands in the first parameter group, the one
place where torch keeps what it does not know: a trainer may load the state before the step is attached.

The metric is Euclidean for every optimiser, adaptive ones included: norms enter as shares of their layer,
so the scale of the update does not matter to which groups leave, and a group that leaves is exactly zero in
any metric.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from hwprune.errors import ArtifactError, InputError
from hwprune.groups.base import Allowance, Grouping, GroupSet
from hwprune.notes import Weighty, log_note
from hwprune.penalties import Penalty, StraightThroughPenalty
from hwprune.processes import agree_
from hwprune.train.finite import not_finite
from hwprune.train.hidden_weights import HiddenWeights
from hwprune.train.pull import Pull
from hwprune.train.schedule import StrengthSchedule

#: Key of the proximal state in the first parameter group of the optimiser's ``state_dict``.
STATE_KEY = "hwprune"
#: How often groups are bundled and priced anew between the start of the ramp and the settling.
REFRESHES = 50
#: Optimisers that a proximal step follows: two would write their states to the same place.
_ATTACHED: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


class ProximalStep:
    """Drives the groups of a network to a budget, one optimiser step at a time.

    Args:
        groups: The groups; scaled in place.
        penalty: Whose proximal operator is applied; its budget and costs are refreshed on the way.
        allowance: What may stay; asked for survivors once, when the support settles.
        schedule: Strength per step.
        target: What the allowance is of, as JSON; states of another target are refused.
        notify: Told when an optimiser is resumed without the state of any pruning.

    Attributes:
        alive: Shape ``(members,)``: which members are not zero.
        step: Steps taken.
        settled: Whether the survivors are fixed.
        after_settling: Called once when they have been, without gradients.
    """

    def __init__(
        self,
        groups: GroupSet,
        penalty: Penalty,
        allowance: Allowance,
        schedule: StrengthSchedule,
        target: Mapping[str, str | float] | None = None,
        notify: Callable[[str], None] = log_note,
    ) -> None:
        self.groups, self.schedule = groups, schedule
        self._penalty, self._target, self._notify = penalty, target, notify
        self.allowance = allowance
        self.alive = torch.ones(groups.member_count, dtype=torch.bool, device=self._device)
        self.step = 0
        self.settled = False
        self._grouping: Grouping | None = None
        self._pull = Pull(groups, penalty)
        self._hidden: HiddenWeights | None = None
        if isinstance(penalty, StraightThroughPenalty):
            self._hidden = HiddenWeights(groups, penalty.covered_decay)
        self._refresh_every = max(1, schedule.settle_step // REFRESHES)
        self._optimizers: list[torch.optim.Optimizer] = []
        self._hooks: list[RemovableHandle] = []
        self._fills_state = False
        self.after_settling: Callable[[], None] = lambda: None

    @property
    def _device(self) -> torch.device:
        """Where the weights are."""
        return self.groups.parameters()[0].device

    def attach(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Applies the proximal step after every ``optimizer.step()``; returns the same optimiser.

        Where the optimiser was resumed before, the proximal step goes on from the state that came along.

        Args:
            optimizer: Any torch optimiser that updates the groups' parameters.

        Raises:
            InputError: If it updates none of them, has no hooks, or a second optimiser is attached.
            ArtifactError: If it was resumed with the state of another network.
        """
        if self._optimizers:
            raise InputError("an optimizer is already wrapped", hint="make one compressor per optimizer")
        if optimizer in _ATTACHED:
            raise InputError(
                "the optimizer is wrapped by another compressor already",
                where=type(optimizer).__name__,
                expected="an optimizer that nothing prunes yet",
                hint="make a new optimizer over the same parameters for the second compressor",
            )
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(parameter) in known for parameter in self.groups.parameters()):
            raise InputError(
                "the optimizer updates no parameter that can be pruned",
                expected="an optimizer over model.parameters() of the compressor's model",
                got=f"{type(optimizer).__name__} over {len(known)} other parameters",
            )
        if not hasattr(optimizer, "_optimizer_step_post_hooks"):
            raise InputError(
                "the optimizer has no hooks that pruning could follow",
                where=type(optimizer).__name__,
                expected="a torch.optim.Optimizer, as it was before anything was wrapped around it",
                hint="wrap it before it is given to accelerator.prepare and the like",
            )
        if self.alive.device != self._device:  # the network was moved since
            self.load_state_dict(self.state_dict())
        loaded = optimizer.param_groups[0].get(STATE_KEY)
        if loaded is not None:
            self.load_state_dict(loaded)
            del optimizer.param_groups[0][STATE_KEY]
        self._optimizers.append(optimizer)
        _ATTACHED.add(optimizer)
        self._hooks = [
            optimizer.register_step_pre_hook(lambda stepped, *_arguments: self._precede(stepped)),
            optimizer.register_step_post_hook(lambda stepped, *_arguments: self._follow(stepped)),
            optimizer.register_state_dict_post_hook(lambda _optimizer, state: self._save_into(state)),
            optimizer.register_load_state_dict_pre_hook(lambda _optimizer, state: self._load_from(state)),
        ]
        return optimizer

    def release(self) -> None:
        """Lets go of the optimiser, so that another one can be attached."""
        for hook in self._hooks:
            hook.remove()
        for optimizer in self._optimizers:
            _ATTACHED.discard(optimizer)
        self._hooks, self._optimizers = [], []

    def _precede(self, optimizer: torch.optim.Optimizer) -> None:
        self._fills_state = _only_fills_state(optimizer)
        if not self._fills_state:
            self.before_step()

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        if self._fills_state:
            return
        # A gradient scaler leaves it to a fused optimiser itself to skip a step, and hangs a note on it.
        if not bool(getattr(optimizer, "found_inf", None)):
            self.after_step()

    def before_step(self) -> None:
        """Notes where the step starts; called by the optimiser's hook.

        What a step turns away from says something only once the penalty pulls with all its strength.
        """
        if not self.settled and self.schedule.at_plateau(self.step + 1):
            self._pull.remember()

    def after_step(self) -> None:
        """One proximal step; called by the optimiser's hook."""
        self.step += 1
        with torch.no_grad():
            if self.settled:
                self.groups.scale_(self.alive)
                return
            strength = self.schedule.strength(self.step)
            if strength > 0:
                with self._dense_weights():
                    self._shrink(strength)
            if self.step >= self.schedule.settle_step:
                self.settle()

    def _dense_weights(self) -> AbstractContextManager[None]:
        """What the network shows and what is covered, all of it alive, where a penalty trains both."""
        if self._hidden is None:
            return nullcontext()
        self.alive = torch.ones_like(self.alive)
        return self._hidden.uncovered(self._optimizers)

    def _shrink(self, strength: float) -> None:
        if self._grouping is None or self.step % self._refresh_every == 0:
            self._grouping = self.groups.bundle(self._living_norms(), self.alive)
            terms = self.allowance.terms(self._grouping, self.alive)
            self._pull.price(terms.at(self.schedule.slack(self.step)))
        grouping = self._grouping
        if not grouping.count:
            return
        try:
            factors = self._pull.factors(grouping, self._living_norms, strength)
        except InputError:
            self._refuse_odd(self._living_norms())
            raise
        members = agree_(self._mask_(grouping.to_members(factors, other=1.0)))
        self.groups.scale_(members)
        self._bury(members > 0)

    def _living_norms(self) -> Tensor:
        """Norms of the members, shape ``(members,)``; zero for those that an optimiser step has revived."""
        return self._mask_(self.groups.member_norms())

    def _mask_(self, members: Tensor) -> Tensor:
        """Zero for the dead, in place; a product with flags would make numbers of them first."""
        return members.masked_fill_(self.alive.logical_not(), 0.0)

    def _bury(self, alive: Tensor) -> None:
        """Notes which members live, and clears the momentum of those that have just died."""
        if torch.equal(alive, self.alive):
            return
        self.alive = alive
        if self._hidden is None:  # what is covered is trained on
            self._clear_momenta()

    def _clear_momenta(self) -> None:
        """Clears what optimisers hold of the dead."""
        for optimizer in self._optimizers:
            self.groups.momenta_scale_(optimizer, self.alive)

    def settle(self) -> None:
        """Fixes the survivors: everything else is zeroed now and after every later step.

        Raises:
            TrainingError: If weights are not finite, which says nothing about who is to survive.
        """
        if not self.settled:
            self.settle_anew()

    def settle_anew(self) -> None:
        """Fixes the survivors among those that live, be they fixed already or not; see :meth:`settle`."""
        with torch.no_grad():
            norms = self._living_norms()
            self._refuse_odd(norms)
            self.alive = agree_(self.allowance.survivors(norms, self.alive))
            # Those that died long ago have gathered momentum since, from gradients that nobody follows.
            self._clear_momenta()
            self.groups.scale_(self.alive)
            if self._hidden is not None:
                self._hidden.forget()
            self.settled = True
            self.after_settling()

    def _refuse_odd(self, norms: Tensor) -> None:
        """Raises where a norm is not finite; a flag for every single weight would be felt otherwise."""
        if not math.isfinite(float(norms.amax())):
            odd = self.groups.members_alive(norms.isfinite().logical_not_())
            raise not_finite(f"layer {next(name for name, count in odd.items() if count)}")

    def bury_zeros(self) -> None:
        """Takes members that are zero for dead: of a network that was pruned before."""
        with torch.no_grad():
            self._bury(self.groups.member_norms() > 0)

    @property
    def groups_alive(self) -> int:
        """Number of living groups, those that must stay included."""
        return self.groups.groups_alive(self.alive)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs: tensors, numbers and names only."""
        state: dict[str, Any] = {
            "asked": self._asked(),
            "members": self._members(),
            "alive": self.alive.clone(),
            "step": self.step,
            "settled": self.settled,
            "limit": self.allowance.limit,
            "record": [dict(turn) for turn in self.allowance.record],
        }
        if self._grouping is not None:
            state["grouping"] = self._grouping.state()
            state["pull"] = self._pull.state_dict()
        if self._hidden is not None:
            state["hidden"] = self._hidden.state()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Raises:
            ArtifactError: If it lacks something, is from another network, or was begun with another target,
                or with another penalty or schedule that are still at work.
        """
        if lacking := {"alive", "step", "settled", "limit", "record"} - set(state):
            raise ArtifactError(
                "the optimizer's state of the pruning is incomplete",
                where=STATE_KEY,
                expected=f"the keys {', '.join(sorted(lacking))} besides",
                got=", ".join(sorted(map(str, state))) or "none",
            )
        alive = state["alive"]
        self._refuse_other_network(alive, state)
        self._refuse_other_compression(state)
        self.alive = alive.to(self._device, torch.bool, copy=True)
        self.step, self.settled = int(state["step"]), bool(state["settled"])
        self.allowance.limit = float(state["limit"])
        self.allowance.record = state["record"]
        self._grouping, self._pull = None, Pull(self.groups, self._penalty)
        if "grouping" in state:
            self._grouping = self.groups.regroup(state["grouping"])
            self._pull.load_state_dict(state["pull"])
        if self._hidden is not None:
            self._hidden.load(state.get("hidden", ()))

    def _asked(self) -> dict[str, Any]:
        """What the training is to come to and how; what is measured on the way is none of it."""
        return {
            "target": self._target,
            "penalty": self._penalty.name,
            "total_steps": self.schedule.total_steps,
            "settle_step": self.schedule.settle_step,
            "ramp": [
                float(part) for part in (self.schedule.start, self.schedule.full, self.schedule.plateau)
            ],
        }

    def _members(self) -> dict[str, int]:
        """How many there are of every layer, dead or alive."""
        # Flags on the CPU go with weights on any device, wherever they were moved.
        return dict(self.groups.members_alive(torch.ones_like(self.alive, device="cpu")))

    def _refuse_other_network(self, alive: Tensor, state: Mapping[str, Any]) -> None:
        expected, got = {"in all": self.alive.numel()}, {"in all": alive.numel()}
        # States of earlier versions know no names.
        if "members" in state:
            expected |= self._members()
            got |= state["members"]
        name = next((name for name in expected | got if expected.get(name) != got.get(name)), None)
        if name is not None:
            raise ArtifactError(
                "the optimizer state is from another network",
                where=f"prunable members, {name}",
                expected=expected.get(name, 0),
                got=got.get(name, 0),
            )

    def _refuse_other_compression(self, state: Mapping[str, Any]) -> None:
        before, now = state.get("asked", {}), self._asked()
        # Once the survivors are fixed a training may go on for longer than was planned.
        binding = ("target",) if state["settled"] else tuple(now)
        other = [key for key in binding if key in before and before[key] != now[key]]
        if other:
            raise ArtifactError(
                "the optimizer state is from another compression",
                where=", ".join(other),
                expected={key: now[key] for key in other},
                got={key: before[key] for key in other},
                hint="make the compressor as it was made the first time",
            )

    def _save_into(self, state: dict[str, Any]) -> dict[str, Any]:
        # The groups of a state are dictionaries of its own, their values are the optimiser's.
        state["param_groups"][0][STATE_KEY] = self.state_dict()
        return state

    def _load_from(self, state: dict[str, Any]) -> dict[str, Any]:
        first, *others = state["param_groups"]
        if STATE_KEY in first:
            self.load_state_dict(first[STATE_KEY])
            first = {key: value for key, value in first.items() if key != STATE_KEY}
        elif state["state"]:
            self._notify(
                Weighty(f"the optimizer's state holds nothing of the pruning, which is at step {self.step}")
            )
        return {**state, "param_groups": [first, *others]}


def _only_fills_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step is made only for the optimiser to make its state.

    ``torch.distributed.checkpoint.state_dict`` does so before it reads or writes a state that is empty: with
    a learning rate of 0 and gradients of zero. A warm-up from 0 has other gradients.
    """
    if optimizer.state or any(float(group.get("lr", 1.0)) for group in optimizer.param_groups):
        return False
    gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    return not any(bool(gradient.any()) for gradient in gradients if gradient is not None)
