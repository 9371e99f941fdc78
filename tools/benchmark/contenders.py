"""Who is compared: one entry of :data:`CONTENDERS` each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cuts import cut_once, narrow, pruned_by_peer, sparse_then_cut, uniform_fitted, uniform_magnitude
from latency import TOLERANCE, UndisturbedBench
from task import DISTILLATION as DISTILLATION
from task import Job, Made, Task, run_epochs
from torch import nn

from hwprune import Compressor, Keep, Speedup
from hwprune.targets import Target
from hwprune.train.schedule import StrengthSchedule

#: Trainings at most, for those whose latency is only known once they are trained.
MOST_TRAININGS = 3


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to a faster network.

    Attributes:
        what: In a few words, for the table.
        make: From a job to a trained network.
        packages: What it needs from PyPI, in an environment of its own.
        scratch: Whether it can start from random weights.
        regularised: Whether it trains with a regulariser of its own before its cut.
        whole: Whether it prunes nothing, and so has no speed-up to reach.
    """

    what: str
    make: Callable[[Job], Made]
    packages: tuple[str, ...] = ()
    scratch: bool = True
    regularised: bool = False
    whole: bool = False

    def obstacle(self, task: Task) -> str:
        """Why it cannot take part in a task; empty where it can."""
        if not task.left:
            return "" if self.scratch else "it needs a trained network: --left 1 or more"
        if self.regularised and task.left == 1:
            return "it trains before and after its cut: --left 2 or more"
        return ""


def compressed(
    job: Job,
    *,
    penalty: str = "envelope",
    distil: bool = False,
    pull: bool = False,
    fit: bool = True,
    target: Target | None = None,
) -> Made:
    """Our own, as ``hwprune prune`` does it.

    Args:
        job: The run.
        penalty: Which.
        distil: Learn from the dense network too.
        pull: Let the penalty pull where the start is trained, instead of settling at once.
        fit: Fit what survives of a trained network to what it computed before.
        target: Instead of the job's speed-up.
    """
    network = job.copy_of_dense()
    steps = job.trainer(network).total_steps
    compressor = Compressor(
        network,
        job.example,
        job.profile,
        target or Speedup(job.speedup),
        total_steps=steps,
        penalty=penalty,
        schedule=StrengthSchedule.from_trained(steps, pull=pull) if job.starts_trained else None,
        bench=UndisturbedBench(),
    )
    if fit and job.starts_trained:
        compressor.reconstruct_on(job.reconstruction_images)
    run_epochs(job.trainer(network, wrap=compressor.wrap, teacher=job.teacher if distil else None))
    result = compressor.finish()
    return Made(result.model, tries=len(result.report.turns))


def by_count(job: Job) -> Made:
    """The envelope with a budget in groups, trained again with another one where the latency misses."""
    fraction = 1 / job.speedup
    best: tuple[float, nn.Module] | None = None
    trainings = 0
    while trainings < MOST_TRAININGS:
        trainings += 1
        network = compressed(job, target=Keep(fraction)).network
        reached = job.stopwatch.speedup(network)
        if best is None or _better(reached, best[0], job.speedup):
            best = (reached, network)
        if job.speedup <= reached <= job.speedup * (1 + TOLERANCE):
            break
        fraction = min(1.0, fraction * reached / (job.speedup * (1 + TOLERANCE / 2)))
    assert best is not None  # at least one training
    return Made(best[1], trainings, tries=trainings)


def _better(reached: float, best: float, target: float) -> bool:
    """Fast enough by less, or nearer to it."""
    if best < target:
        return reached > best
    return target <= reached < best


def trained_on(job: Job) -> Made:
    """The dense network after the epochs that are left."""
    network = job.copy_of_dense()
    run_epochs(job.trainer(network))
    return Made(network)


_PEER = ("torch-pruning==1.6.1",)

CONTENDERS: dict[str, Contender] = {
    "dense-longer": Contender(
        "the dense network, trained for the epochs that are left", trained_on, scratch=False, whole=True
    ),
    "hwprune": Contender(
        "in microseconds; the envelope from scratch, settled at once from a trained start", compressed
    ),
    "hwprune-distil": Contender(
        "hwprune, taught by the dense network too", partial(compressed, distil=True), scratch=False
    ),
    "hwprune-unfitted": Contender(
        "hwprune, without fitting survivors to the trained start", partial(compressed, fit=False)
    ),
    "hwprune-pull": Contender(
        "in microseconds, the envelope pulling from a trained start too", partial(compressed, pull=True)
    ),
    "hwprune-count": Contender("the envelope, in groups", by_count),
    "hwprune-magnitude": Contender(
        "from scratch, cut once by norm, in microseconds", partial(compressed, penalty="magnitude")
    ),
    "wgsef": Contender(
        "the plain envelope, in microseconds", partial(compressed, penalty="wgsef", pull=True)
    ),
    "group-lasso": Contender(
        "group lasso, in microseconds", partial(compressed, penalty="group-lasso", pull=True)
    ),
    "halo": Contender("HALO on groups, in microseconds", partial(compressed, penalty="halo", pull=True)),
    "magnitude": Contender(
        "the same part of every layer by norm, in the device's steps",
        partial(cut_once, choose=uniform_magnitude),
    ),
    "magnitude-distil": Contender(
        "the same, taught by the dense network too",
        partial(cut_once, choose=uniform_magnitude, distil=True),
        scratch=False,
    ),
    "uniform-fit-distil": Contender(
        "the same, and what stays is fitted as hwprune does it",
        partial(cut_once, choose=uniform_fitted, distil=True),
        scratch=False,
    ),
    "tp-magnitude": Contender(
        "Torch-Pruning, global magnitude",
        partial(cut_once, choose=partial(pruned_by_peer, method="magnitude")),
        _PEER,
    ),
    "tp-magnitude-distil": Contender(
        "the same, taught by the dense network too",
        partial(cut_once, choose=partial(pruned_by_peer, method="magnitude"), distil=True),
        _PEER,
        scratch=False,
    ),
    "tp-isomorphic": Contender(
        "Torch-Pruning, isomorphic",
        partial(cut_once, choose=partial(pruned_by_peer, method="isomorphic")),
        _PEER,
    ),
    "tp-isomorphic-distil": Contender(
        "the same, taught by the dense network too",
        partial(cut_once, choose=partial(pruned_by_peer, method="isomorphic"), distil=True),
        _PEER,
        scratch=False,
    ),
    "tp-bn-scale": Contender(
        "Torch-Pruning, batch-norm scales, sparse training",
        partial(sparse_then_cut, method="bn-scale"),
        _PEER,
        regularised=True,
    ),
    "tp-group-norm": Contender(
        "Torch-Pruning, group norm, sparse training",
        partial(sparse_then_cut, method="group-norm"),
        _PEER,
        regularised=True,
    ),
    "narrow": Contender("uniformly narrower, from random weights", partial(narrow, aligned=False)),
    "narrow-aligned": Contender("the same in the device's steps", partial(narrow, aligned=True)),
    "narrow-aligned-distil": Contender(
        "the same, taught by the dense network too",
        partial(narrow, aligned=True, distil=True),
        scratch=False,
    ),
    "narrow-aligned-full": Contender(
        "narrow-aligned with all epochs of the dense network and of the fine-tuning",
        partial(narrow, aligned=True, full=True),
        scratch=False,
    ),
}
