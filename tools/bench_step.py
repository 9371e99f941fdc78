"""Times whole training steps with and without the proximal step, in pairs.

    python tools/bench_step.py --models resnet18,mobilenetv1 --out page.md

Both networks start from the same weights and see the same batches; which one goes first is drawn for every
pair. The proximal step is in the phase where it does most: past the start of the ramp, before the settling;
the first timed step is one that bundles the groups anew. The memory is that of the step that needs most.
"""

from __future__ import annotations

import cProfile
import gc
import pstats
import random
import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import click
import numpy as np
import torch
from bench_pages import machine_line, percentiles, verdict, write_page
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hwprune.graph.coupling import find_axes
from hwprune.groups.base import Allowance, GroupSet
from hwprune.groups.channel import ChannelGroups
from hwprune.groups.costs import CountBudget
from hwprune.groups.weight import WeightGroups
from hwprune.groups.widths import WidthAllowance
from hwprune.penalties import make_penalty
from hwprune.train.prox import REFRESHES, ProximalStep
from hwprune.train.schedule import StrengthSchedule
from hwprune.workloads import make_model

Placed = TypeVar("Placed", Tensor, nn.Module)
WARMUP = 3
#: The trainings whose middle is measured are this long; their ramp starts after a tenth of it.
TOTAL_STEPS = 5000
SETTLE = StrengthSchedule(TOTAL_STEPS).settle_step
#: Steps between two that bundle the groups anew.
REFRESH_EVERY = SETTLE // REFRESHES
#: Where the measured stretch starts: the first step after warming up bundles anew.
START = -(-TOTAL_STEPS // 5 // REFRESH_EVERY) * REFRESH_EVERY - WARMUP - 1
#: The most that is wanted: of the median of wrapped over plain, and of the memory in floats per parameter.
WANTED_RATIO = {"resnet18, channels": 1.03, "mobilenetv1, channels": 1.05, "resnet18, weights": 1.15}
#: The same on a GPU.
WANTED_RATIO_CUDA = {"resnet18, channels": 1.02}
WANTED_MEMORY = {"channel": 0.05, "weight": 2.0}
#: What a proximal step does, to the functions that do it.
WHOLE, BUNDLING = "proximal step", "bundling"
PARTS: Mapping[str, frozenset[str]] = {
    "norms": frozenset({"member_norms"}),
    "root and factors": frozenset({"solve"}),
    "scaling": frozenset({"scale_"}),
}
#: Proximal steps that are profiled.
PROFILED = 5
ALIGN = 8
CLASSES = 10


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the memory of the tensors that are made while it is active.

    Attributes:
        peak: The most bytes that were alive at a time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._made: list[tuple[weakref.ref[Tensor], int, int]] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._made = [entry for entry in self._made if entry[0]() is not None]
        # A view keeps the memory alive that it looks into; views of what was there before are free.
        own = {storage for _, storage, _ in self._made}
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)} - own
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _storage(leaf) not in given:
                self._made.append((weakref.ref(leaf), _storage(leaf), leaf.untyped_storage().nbytes()))
        self.peak = max(self.peak, sum({storage: size for _, storage, size in self._made}.values()))
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def kept_bytes(proximal: ProximalStep, model: nn.Module) -> int:
    """Bytes of all tensors that a proximal step holds between steps, besides the network's own."""
    found: dict[int, int] = {}
    known = {_storage(tensor) for tensor in model.state_dict().values()}
    seen, waiting = {id(model)}, [proximal]
    while waiting:
        thing: Any = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType, torch.optim.Optimizer)):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor) and _storage(thing) not in known:
            found[_storage(thing)] = thing.untyped_storage().nbytes()
        if not isinstance(thing, Tensor):
            waiting += gc.get_referents(thing)
    return sum(found.values())


@dataclass(frozen=True, slots=True)
class Overhead:
    """What the proximal step adds to a training step.

    Attributes:
        model: The network.
        granularity: What leaves together.
        plain_ms: Durations of the plain steps, in milliseconds.
        ratios: Wrapped over plain, pair by pair.
        kept: Floats that are held between steps, as a fraction of the parameters.
        memory: The most floats that are held at any time of any step, those included.
        parts: Milliseconds of a proximal step by what it does, see :meth:`Trainer.parts_ms`.
    """

    model: str
    granularity: str
    plain_ms: tuple[float, ...]
    ratios: tuple[float, ...]
    kept: float
    memory: float
    parts: Mapping[str, float]

    @property
    def name(self) -> str:
        """Network and granularity."""
        return f"{self.model}, {self.granularity}s"


def proximal_step(model: nn.Module, granularity: str) -> ProximalStep:
    """A proximal step in the middle of its ramp: on channels in bundles, or on single weights."""
    groups, allowance = _channels(model) if granularity == "channel" else _weights(model)
    proximal = ProximalStep(groups, make_penalty("envelope"), allowance, StrengthSchedule(TOTAL_STEPS))
    proximal.step = START
    return proximal


def _channels(model: nn.Module) -> tuple[GroupSet, Allowance]:
    example = torch.zeros(1, 3, 32, 32, device=next(model.parameters()).device)
    axes = find_axes(model, example)
    groups = ChannelGroups(model, axes, {axis.name: ALIGN for axis in axes})
    return groups, WidthAllowance(groups, CountBudget(np.array(groups.aligns), groups.group_count // 2))


def _weights(model: nn.Module) -> tuple[GroupSet, Allowance]:
    groups = WeightGroups(model)
    return groups, groups.allowance(lambda total: total // 2)


@dataclass(frozen=True, slots=True)
class Setting:
    """How networks are trained.

    Attributes:
        device: ``cpu`` or ``cuda``.
        batch: Images per step.
        bf16: Whether the forward pass is under autocast to bfloat16.
        channels_last: Whether the channels of a pixel lie side by side.
    """

    device: str = "cpu"
    batch: int = 128
    bf16: bool = False
    channels_last: bool = False

    def placed(self, thing: Placed) -> Placed:
        """A network, or its images, on the device and in its memory layout."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        either: Any = thing  # the types of a network's method leave the layout out
        moved: Placed = either.to(self.device, memory_format=layout)
        return moved

    def told(self) -> str:
        """The setting in words for the page."""
        precision = "bfloat16 (autocast)" if self.bf16 else "single precision"
        return f"{self.batch} images of 3x32x32, {precision}{', channels last' if self.channels_last else ''}"


class Trainer:
    """One network in training, one step at a time."""

    def __init__(self, name: str, granularity: str, setting: Setting, *, wrapped: bool) -> None:
        self._setting = setting
        self._model = setting.placed(make_model(name, in_channels=3, image_size=32, classes=CLASSES, seed=0))
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.proximal = proximal_step(self._model, granularity) if wrapped else None
        if self.proximal is not None:
            self.proximal.attach(self._optimizer)

    def step_ms(self, images: Tensor, labels: Tensor) -> float:
        """Takes one step; how long it took, in milliseconds."""
        _wait(images)
        start = time.perf_counter_ns()
        self._optimizer.zero_grad()
        with torch.autocast(self._setting.device, torch.bfloat16, enabled=self._setting.bf16):
            loss = nn.functional.cross_entropy(self._model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        _wait(images)
        return (time.perf_counter_ns() - start) / 1e6

    def memory(self) -> tuple[float, float]:
        """Floats held between steps, and the most at any time of one, as fractions of the parameters.

        The most is that of a step in the ramp, one that bundles anew, or the settling, after which the
        training is over.
        """
        assert self.proximal is not None  # asked of wrapped trainings only
        kept = most = kept_bytes(self.proximal, self._model)
        for step in (START, START + WARMUP + 1, SETTLE):
            if step == SETTLE:
                self._bury()
            before = kept_bytes(self.proximal, self._model)
            self.proximal.step = step - 1
            with LiveBytes() as live:
                self.proximal.after_step()
            most = max(most, before + live.peak)
        assert self.proximal.settled
        floats = 4 * sum(parameter.numel() for parameter in self._model.parameters())
        return kept / floats, most / floats

    def parts_ms(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Milliseconds of one proximal step after a training step's passes, by what it does; medians.

        A profiler of Python functions counts; what it costs itself is in the times. *Bundling* is what a step
        takes longer that bundles and prices the groups anew.
        """
        assert self.proximal is not None  # asked of wrapped trainings only
        spent: dict[str, list[float]] = {name: [] for name in (WHOLE, *PARTS, BUNDLING)}
        for _ in range(PROFILED):
            self.proximal.step = START + WARMUP + 1
            self.step_ms(images, labels)
            usual = profiled_ms(self.proximal.after_step)
            self.proximal.step = START + WARMUP
            rare = profiled_ms(self.proximal.after_step)[WHOLE]
            for name, taken in {**usual, BUNDLING: rare - usual[WHOLE]}.items():
                spent[name].append(taken)
        return {name: statistics.median(taken) for name, taken in spent.items()}

    def _bury(self) -> None:
        """Kills the half that has to go, as a ramp has by its end."""
        assert self.proximal is not None  # asked of wrapped trainings only
        norms = self.proximal.groups.member_norms()
        with torch.no_grad():
            self.proximal.groups.scale_(norms > norms.median())
        self.proximal.bury_zeros()


def profiled_ms(after_step: Callable[[], None]) -> dict[str, float]:
    """Milliseconds of a proximal step and, within it, of each of :data:`PARTS`."""
    profile = cProfile.Profile()
    profile.runcall(after_step)
    found: Any = pstats.Stats(profile)
    spent = dict.fromkeys((WHOLE, *PARTS), 0.0)
    for (_file, _line, function), (_calls, _all, _own, whole, _callers) in found.stats.items():
        for name, functions in {WHOLE: {"after_step"}, **PARTS}.items():
            spent[name] += 1e3 * whole if function in functions else 0.0
    return spent


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize()


def compare(name: str, granularity: str, steps: int, setting: Setting) -> Overhead:
    """Times that many pairs of steps."""
    generator = torch.Generator().manual_seed(0)
    images = setting.placed(torch.randn(setting.batch, 3, 32, 32, generator=generator))
    labels = torch.randint(0, CLASSES, (setting.batch,), generator=generator).to(setting.device)
    trainers = {wrapped: Trainer(name, granularity, setting, wrapped=wrapped) for wrapped in (False, True)}
    order = random.Random(0)
    plain, ratios = [], []
    for pair in range(-WARMUP, steps):
        turns = order.sample((False, True), 2)
        spent = {wrapped: trainers[wrapped].step_ms(images, labels) for wrapped in turns}
        if pair >= 0:
            plain.append(spent[False])
            ratios.append(spent[True] / spent[False])
    wrapped = trainers[True]
    parts = wrapped.parts_ms(images, labels)
    return Overhead(name, granularity, tuple(plain), tuple(ratios), *wrapped.memory(), parts)


def as_markdown(results: Sequence[Overhead], setting: Setting) -> list[str]:
    """The page."""
    lines = [
        "# What pruning adds to a training step",
        "",
        "Written by `tools/bench_step.py`: whole steps of SGD with momentum on batches of",
        f"{setting.told()};",
        f"channels in bundles of {ALIGN}, or single weights, half of them to go. Plain and wrapped",
        "steps alternate in pairs; the ratio is that of a pair: its median with the 10th and 90th",
        "percentile, and its mean with the standard error. Groups are bundled anew in the first pair and",
        f"every {REFRESH_EVERY} steps from there. Kept is what pruning holds between steps, memory the most",
        "that it holds at any time of a step in the ramp, of one that bundles anew, or of the settling, both",
        "in floats over the number of parameters, as far as PyTorch's operators hand it out. The penalty is",
        "the envelope and the budget a count; `half-space` keeps a copy of the parameters besides, `halo`",
        "its coefficients.",
        "",
        machine_line(setting.device),
        "",
        "| network | plain step, ms | wrapped / plain | p10 | p90 | mean (error) | kept | memory | pairs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ratio, low, high = percentiles(result.ratios)
        plain = percentiles(result.plain_ms)[0]
        lines.append(
            f"| {result.name} | {plain:.1f} | {ratio:.4f} | {low:.4f} | {high:.4f} | {_mean(result.ratios)} "
            f"| {result.kept:.4f} | {result.memory:.4f} | {len(result.ratios)} |"
        )
    return [
        *lines,
        "",
        *_profile_lines(results),
        "",
        "Wanted, of the medians:",
        "",
        *_verdicts(results, setting),
    ]


def _mean(ratios: Sequence[float]) -> str:
    error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
    return f"{statistics.mean(ratios):.4f} ({error:.4f})"


def _profile_lines(results: Sequence[Overhead]) -> list[str]:
    """Where the time of a proximal step goes."""
    names = (WHOLE, *PARTS, BUNDLING)
    return [
        f"Where the time of a proximal step goes, in milliseconds, medians of {PROFILED} under a profiler,",
        "which costs something itself. Bundling and pricing come on top in the steps that bundle anew.",
        "",
        f"| network | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
        *(
            f"| {result.name} | {' | '.join(f'{result.parts[name]:.2f}' for name in names)} |"
            for result in results
        ),
    ]


def _verdicts(results: Sequence[Overhead], setting: Setting) -> list[str]:
    """Whether the wanted figures are met, of the networks that have some."""
    wanted = WANTED_RATIO_CUDA if setting.device == "cuda" else WANTED_RATIO
    lines = []
    for result in results:
        if result.name in wanted:
            ratio = percentiles(result.ratios)[0]
            lines.append(verdict(f"{result.name}, wrapped / plain", ratio, wanted[result.name]))
        lines.append(verdict(f"{result.name}, memory", result.memory, WANTED_MEMORY[result.granularity]))
    return lines


@click.command()
@click.option(
    "--models",
    default="resnet18:channel,mobilenetv1:channel,resnet18:weight",
    show_default=True,
    help="Names with a granularity each, with commas.",
)
@click.option("--batch", default=128, show_default=True, help="Images per step.")
@click.option("--steps", default=60, show_default=True, help="Pairs of steps per network.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--bf16", is_flag=True, help="Forward passes under autocast to bfloat16.")
@click.option("--channels-last", is_flag=True, help="The channels of a pixel side by side.")
@click.option("--threads", default=1, show_default=True, help="Threads of PyTorch on the CPU.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the page goes; shown by default.")
def main(
    models: str,
    batch: int,
    steps: int,
    device: str,
    bf16: bool,
    channels_last: bool,
    threads: int,
    out: Path | None,
) -> None:
    """Times training steps with and without the proximal step."""
    most = SETTLE - START - WARMUP - 1
    if not 1 <= steps <= most:
        raise click.BadParameter(f"must be from 1 to {most}", param_hint="--steps")
    torch.set_num_threads(threads)
    pairs = [model.partition(":")[::2] for model in models.split(",")]
    setting = Setting(device, batch, bf16, channels_last)
    results = [compare(name, granularity or "channel", steps, setting) for name, granularity in pairs]
    write_page(as_markdown(results, setting), out)


if __name__ == "__main__":
    main()
