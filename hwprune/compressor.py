"""The compressor: two lines in anybody's training loop.

::

    compressor = hwprune.Compressor(model, example_inputs, profile, hwprune.Speedup(2.0), total_steps=n)
    optimizer = compressor.wrap(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    ...                                # backward(), optimizer.step(), as ever
    result = compressor.finish()       # result.model is the slim network
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from hwprune.channel_scope import ChannelScope
from hwprune.closed_loop import Turn
from hwprune.device.profile import DeviceProfile, check_profile
from hwprune.errors import InputError, VerificationError
from hwprune.granularities import CHANNEL, PRICED_BY_WIDTH, SHRINKING, make_scope
from hwprune.graph.record import ExampleInputs
from hwprune.graph.twin import copy_of
from hwprune.groups import SINGLE_WEIGHTS, MakeMasked
from hwprune.groups.base import GroupSet
from hwprune.groups.shards import is_sharded, whole
from hwprune.notes import log_note
from hwprune.penalties import make_penalty
from hwprune.processes import distributed
from hwprune.result import Report, Result
from hwprune.runtime.bench import THIS_MACHINE, Bench
from hwprune.runtime.patience import Patience
from hwprune.runtime.timing import Timing
from hwprune.scope import Request
from hwprune.surgery.random_inputs import with_random_inputs
from hwprune.targets import Target, describe
from hwprune.train.averages import averaged_state
from hwprune.train.coverage import check_coverage
from hwprune.train.finite import check_finite
from hwprune.train.prox import ProximalStep
from hwprune.train.reconstruction import Reconstruction
from hwprune.train.schedule import BY_NORM, StrengthSchedule, check_steps
from hwprune.width_scope import WidthScope


class Compressor:
    """Prunes a network while it is trained, to a target on a device.

    Args:
        model: The network; trained and masked in place, never narrowed. What ``torch.compile`` gave stands
            for the network inside.
        example_inputs: A tensor, a sequence of arguments or a mapping of keyword arguments.
        profile: The device.
        target: :class:`Speedup`, :class:`LatencyUs`, :class:`Keep` or :class:`Groups`.
        total_steps: Optimiser steps of the whole training.
        granularity: What a group is: a name from :func:`granularity_names`, or a function that makes the
            groups, such as ``functools.partial(BlockGroups, size=16)``.
        penalty: A name from :func:`hwprune.penalties.penalty_names`.
        schedule: Strength per step, for as many of them; chosen from ``total_steps`` by default.
        keep: Names of modules that must stay whole.
        measure: Whether to measure, to correct the prediction and to settle. Without it a latency is met in
            prediction only, and for a number of groups nothing is measured at all.
        notify: Called with one line for everything the user should know; logged by default, as a
            warning where rows are measured.
        bench: What is measured on; this machine by default.

    Raises:
        GraphError: If the forward pass fails or nothing can be pruned.
        TargetError: If the target is out of reach; the message gives the fastest the device can be. A
            latency is in reach of channels and branches, and of single weights where the device skips zeros.
        InputError: If an argument is wrong.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs,
        profile: DeviceProfile,
        target: Target,
        *,
        total_steps: int,
        granularity: str | MakeMasked = CHANNEL,
        penalty: str = "envelope",
        schedule: StrengthSchedule | None = None,
        keep: Sequence[str] = (),
        measure: bool = True,
        notify: Callable[[str], None] = log_note,
        bench: Bench = THIS_MACHINE,
    ) -> None:
        check_profile(profile, "Compressor")
        check_steps(total_steps)
        if schedule is not None and schedule.total_steps != total_steps:
            raise InputError(
                "the schedule is for another number of steps",
                where="Compressor, schedule",
                expected=f"total_steps of {total_steps}",
                got=schedule.total_steps,
            )
        singles = not isinstance(granularity, str) or granularity in SINGLE_WEIGHTS
        made = make_penalty(penalty, singles=singles)  # first: what follows may measure for a minute
        # What torch.compile gave: the network inside has the same parameters, and names that others know.
        model = getattr(model, "_orig_mod", model)
        self.model, self.example_inputs, self.target = model, example_inputs, target
        # The model may be sharded among the processes after this; surgery needs it whole.
        self._unsharded = copy_of(model) if distributed() else model
        self.patience = Patience(notify, sleep=bench.wait)
        request = Request(
            model,
            self._unsharded,
            example_inputs,
            profile,
            target,
            keep,
            measure,
            notify,
            self.patience,
            bench,
        )
        self._scope, self._notify = make_scope(granularity, request), notify
        self._by_norm = penalty in BY_NORM
        self._shrinks = isinstance(granularity, str) and granularity in SHRINKING
        self.proximal = ProximalStep(
            self._scope.groups,
            made,
            self._scope.allowance,
            schedule or StrengthSchedule(total_steps),
            describe(target),
            notify,
        )

    @property
    def groups(self) -> GroupSet:
        """What may leave the network."""
        return self._scope.groups

    @property
    def profile(self) -> DeviceProfile:
        """The device, with a row for every operator of the network that has a price."""
        return self._scope.profile

    def wrap(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Attaches the pruning to ``optimizer``; returns the same optimiser.

        Call it after ``fully_shard``, which puts other parameters in the place of the model's.

        Raises:
            InputError: If it leaves out prunable parameters that are not frozen, one is attached already, or
                parameters are spread over processes otherwise than ``fully_shard`` does.
        """
        self.groups.rebind(self.model)
        check_coverage(optimizer, self.model, self.groups, self._notify)
        return self.proximal.attach(optimizer)

    def reconstruct_on(self, inputs: ExampleInputs) -> None:
        """Lets survive what the network would miss most, and fits it to what the network computes now.

        For networks that are trained already: call it before the first step. Channels stay whose loss the
        layers that read them could make up for least (:mod:`hwprune.train.elimination`), with ``magnitude``
        and ``hard-threshold`` those with the largest norms. What the fit then gives back of what the others
        took, layer by layer and without labels, need not be learned again; see
        :class:`~hwprune.train.reconstruction.Reconstruction`.

        Args:
            inputs: Some hundreds of training inputs of all kinds, as the network is called with them; of
                large maps only the first are used. Until then they are held in memory with samples of what
                the layers make of them.

        Raises:
            InputError: If groups are single weights or blocks: layers do not lose inputs then. If pruning
                has begun.
            GraphError: If the forward pass fails on them.
        """
        if self.proximal.settled or self.proximal.step:
            raise InputError(
                "survivors can be fitted only to a network that is whole",
                where="Compressor.reconstruct_on",
                expected="a call before the first step",
                got=f"a network after {self.proximal.step} steps",
            )
        if not self._shrinks:
            raise InputError(
                "survivors are fitted only where whole inputs of layers leave",
                where="Compressor.reconstruct_on",
                expected=f"granularity {', '.join(SHRINKING)}",
            )
        self._reconstruct_on(inputs)

    def _reconstruct_on(self, inputs: ExampleInputs) -> None:
        """Has survivors chosen and fitted, when they are fixed, by what the layers make of the inputs now."""
        reconstruction, notify = Reconstruction(self.model, inputs), self._notify
        if isinstance(self._scope, ChannelScope) and not self._by_norm:
            self._scope.rank_on(reconstruction.inputs)

        def fit() -> None:
            self.proximal.after_settling = lambda: None  # what it holds is of no more use
            errors = list(reconstruction.fit(self.model).values())
            if errors:
                median, worst = statistics.median(errors), max(errors)
                notify(
                    f"fitted {len(errors)} layers to what they computed before: all but {median:.1%} of a "
                    f"layer's energy in the median, {worst:.1%} at worst, on inputs held out"
                )

        self.proximal.after_settling = fit

    def known(self) -> Turn | None:
        """What an earlier run found of a finished network as large as this one.

        Runs keep it in the user's cache and decide by it whether to correct a network, so that equal runs
        come to equal networks.

        Returns:
            ``None`` where no run knows of one, or no latency is aimed at.
        """
        scope = self._scope
        return scope.known(self.proximal.alive) if isinstance(scope, WidthScope) else None

    def judged(self, timings: Mapping[str, Timing]) -> Turn | None:
        """The finished network as one more turn of the closed loop.

        Args:
            timings: Of ``dense`` and ``slim``, as they are delivered.

        Returns:
            ``None`` where no latency is aimed at, nothing is measured, or groups are no channels or branches.
        """
        scope = self._scope
        return scope.judged(self.proximal.alive, timings) if isinstance(scope, WidthScope) else None

    def correct(self, turn: Turn, inputs: ExampleInputs | None = None) -> None:
        """Takes out more of a network that was finished and missed its target.

        The optimiser is let go: wrap another one to train what is left, then :meth:`finish` again.

        Args:
            turn: The finished network, from :meth:`judged` or :meth:`known`.
            inputs: What survivors are chosen and fitted by, as in :meth:`reconstruct_on`; ``None`` chooses
                them by their norms.

        Raises:
            InputError: If groups are neither channels nor branches.
            TargetError: If nothing is left to take out that could make it so fast.
        """
        if not isinstance(self._scope, WidthScope):
            raise InputError(
                "only networks that lose channels or branches can be corrected",
                where="Compressor.correct",
                expected=f"granularity {', '.join(PRICED_BY_WIDTH)}",
            )
        self._scope.aim_lower(turn, self.proximal.alive)
        self.proximal.after_settling = lambda: None
        self._scope.allowance.rank = self._scope.allowance.by_norm
        if inputs is not None:
            self._reconstruct_on(inputs)
        self.proximal.settle_anew()
        self.proximal.release()

    def finish(self, verification_inputs: Sequence[ExampleInputs] = ()) -> Result:
        """Settles the support if that has not happened yet, rebuilds and verifies.

        Args:
            verification_inputs: Real inputs to verify on, besides the example inputs and, where the network
                takes them, random numbers of their shapes and types.

        Raises:
            VerificationError: If slim and masked differ, or what was pruned is not zero any more.
            TrainingError: If weights are not finite.
        """
        self._settle()
        trained = self._whole_model()
        check_finite(trained)
        self._check_zeros()
        batches = with_random_inputs(trained, [self.example_inputs, *verification_inputs])
        finished = self._scope.finish(trained, self.proximal.alive, batches)
        report = Report(
            groups={
                "total": self.groups.group_count,
                "kept": self.proximal.groups_alive,
                "budget": self.proximal.allowance.limit,
            },
            predicted_us={"dense": self.dense_predicted_us, "slim": self.predicted_us},
            correction=self._scope.correction,
            turns=self._scope.turns,
            max_abs_difference=finished.max_abs_difference,
        )
        return Result(
            finished.model,
            finished.plan,
            report,
            finished.axes,
            finished.kept,
            finished.forms,
            finished.biases,
        )

    def use_average(self, average: nn.Module) -> None:
        """Puts averages of the weights (EMA, SWA) in the network's place, without what has been pruned.

        Averages may be begun at any time: what they still hold of pruned groups is zeroed. Call it after the
        last step and before :meth:`finish`; a support that has not settled yet does so now, by the averages.
        Statistics of batch norm come along, as they were with what has been pruned since: take them anew on
        training images (``torch.optim.swa_utils.update_bn``) where the average was begun long before.

        Args:
            average: A network of the same parameters and buffers, or what holds one as its ``module``, as
                ``torch.optim.swa_utils.AveragedModel`` and timm's ``ModelEmaV3`` do. It is left as it is.

        Raises:
            InputError: If its parameters and buffers are not those of the network; nothing is changed then.
            TrainingError: If weights of the average are not finite, likewise.
        """
        self.model.load_state_dict(averaged_state(average, self.model))
        self._settle()
        with torch.no_grad():
            self.groups.scale_(self.proximal.alive)

    def _settle(self) -> None:
        """Fixes the survivors if that has not happened yet, and says that it is late."""
        if not self.proximal.settled:
            planned = self.proximal.schedule.total_steps
            self._notify(
                f"the training ended after {self.proximal.step} of {planned} steps, before survivors were "
                "fixed: that is done now, and nothing has trained them since"
            )
        self.proximal.settle()

    def _check_zeros(self) -> None:
        """Raises where weights came back that were pruned."""
        norms = self.groups.member_norms()
        back = int((norms[~self.proximal.alive] > 0).sum())
        if back:
            raise VerificationError(
                "weights that were pruned are not zero",
                where="Compressor.finish",
                expected="the model with the weights that the wrapped optimizer left",
                got=f"{back} of {int((~self.proximal.alive).sum())} pruned members with other values",
                hint="something wrote weights after the last step, averages (EMA) or an older checkpoint: "
                "hand averages to use_average(), or make one more step",
            )

    def _whole_model(self) -> nn.Module:
        """The trained network; where it is sharded, a copy with the weights of all processes."""
        state = self.model.state_dict()
        if not any(is_sharded(tensor) for tensor in state.values()):
            return self.model
        self._unsharded.load_state_dict({name: whole(tensor) for name, tensor in state.items()})
        return self._unsharded

    @property
    def members_alive(self) -> dict[str, int]:
        """Living channels of every axis, or weights of every layer, by its name."""
        return self.groups.members_alive(self.proximal.alive)

    @property
    def dense_predicted_us(self) -> float | None:
        """Predicted latency of the dense network, in microseconds; ``None`` where nothing prices it."""
        return self._scope.dense_predicted_us

    @property
    def predicted_us(self) -> float | None:
        """Predicted latency of what lives at present, in microseconds; ``None`` where nothing prices it."""
        return self._scope.predicted_us(self.proximal.alive)
