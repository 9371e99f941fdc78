"""What is asked of a network of the zoo: is its cut exact, in PyTorch and ONNX Runtime, and a peer's?

The cut is made as the compressor makes it: axes are found and proven, all that may shrink are cut together,
constants are folded into biases, and the slim network is verified.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from zoo_networks import Entry, Inputs, build, in_precision

from hwprune.device.profile import RuntimeSpec
from hwprune.errors import GraphError, HwpruneError, VerificationError
from hwprune.graph.axes import BoolArray, ChannelAxis
from hwprune.graph.coupling import find_axes
from hwprune.runtime.base import get_runtime
from hwprune.runtime.export import export
from hwprune.surgery.fold import fold_constants
from hwprune.surgery.outputs import compare, outputs_of
from hwprune.surgery.prove import ProvenAxes, prove
from hwprune.surgery.random_copies import randomised
from hwprune.surgery.random_inputs import with_random_inputs
from hwprune.surgery.rebuild import rebuild
from hwprune.surgery.trial import zeroed
from hwprune.surgery.verify import verify

#: What torch-pruning may differ by, in double precision: rounding stays far below, a wrong cut far above.
TOLERANCE = 1e-6
#: Runtimes compute in single precision; where PyTorch's own rounding is worse, ten times that.
RUNTIME_TOLERANCE = 1e-3
ENOUGH = 0.3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one network.

    Attributes:
        family: The package it comes from.
        name: Its name there.
        verdict: What came out, in a word or two.
        gone: Share of the parameters that were cut.
        axes: Number of channel axes.
        cut: Number of axes that were cut.
        reasons: Why axes were kept, with how many of them; or why there is nothing to judge.
        discovery_s: Seconds it took to find the axes.
        tried_s: Seconds it took to try them one by one.
        date: When it was asked.
        revision: Of this repository, by git.
    """

    family: str
    name: str
    verdict: str
    gone: float = 0.0
    axes: int = 0
    cut: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    discovery_s: float = 0.0
    tried_s: float = 0.0
    date: str = ""
    revision: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A network with half of its channels cut.

    Attributes:
        slim: The narrow network, ``None`` where it was not to be built or differs.
        expected: What the network with the same channels at zero computes.
        failure: Why the cut is not exact, if it is not.
        gone: Share of the parameters that were cut.
    """

    slim: nn.Module | None
    expected: list[Tensor]
    failure: str | None
    gone: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """One network, examined.

    Attributes:
        cut: The cut of all axes that may shrink.
        axes: Every axis.
        free: Those that were cut.
        reasons: Why the others were kept, with how many of them, and why the cut is not exact.
        inputs: What the network is called with.
        discovery_s: Seconds it took to find the axes.
        tried_s: Seconds it took to try them one by one.
    """

    cut: Cut
    axes: Sequence[ChannelAxis]
    free: Sequence[ChannelAxis]
    reasons: Counter[str]
    inputs: Inputs
    discovery_s: float
    tried_s: float


def half(axes: Sequence[ChannelAxis]) -> dict[str, BoolArray]:
    """Masks that keep a random half of the channels of every axis."""
    rng = np.random.default_rng(0)
    return {axis.name: rng.permutation(axis.width) < (axis.width + 1) // 2 for axis in axes}


def cut_half(dense: nn.Module, axes: Sequence[ChannelAxis], inputs: Inputs, *, fold: bool) -> Cut:
    """Cuts the axes in half and verifies against the network whose channels are merely zero.

    Args:
        dense: The network; its channels are zero meanwhile.
        axes: Those that may shrink.
        inputs: What it is called with.
        fold: Whether biases take up constants.
    """
    kept = half(axes)
    with contextlib.ExitStack() as zeros:
        for axis in axes:
            zeros.enter_context(zeroed(dense, axis, kept[axis.name]))
        expected = outputs_of(dense, inputs)
        try:
            slim = rebuild(dense, axes, kept)
            if fold:
                fold_constants(dense, slim, axes, kept, inputs)
            verify(dense, slim, with_random_inputs(dense, [inputs]), axes=axes, kept=kept)
        except (GraphError, VerificationError) as error:
            return Cut(None, expected, f"{error.what} (in {error.where}): {error.got}")
        except Exception as error:  # a mistake of ours counts, too
            return Cut(None, expected, f"{type(error).__name__}: {error}")
    before, after = (sum(p.numel() for p in net.parameters()) for net in (dense, slim))
    return Cut(slim, expected, None, 1 - after / before)


def examine(model: nn.Module, inputs: Inputs) -> Examined:
    """Finds the axes of a network, tries each, and cuts those that came out equal, all together."""
    started = time.perf_counter()
    axes = find_axes(model, inputs)
    found = time.perf_counter()
    proven: ProvenAxes = prove(model, axes, inputs, {axis.name: 1 for axis in axes}, fold=True)
    tried_s = time.perf_counter() - found
    free = [axis for axis in proven.axes if axis.pinned is None]
    dense = randomised(model, torch.Generator().manual_seed(0)).eval()
    cut = cut_half(dense, free, inputs, fold=bool(proven.folded))
    reasons = Counter(_in_short(axis.pinned) for axis in proven.axes if axis.pinned)
    if cut.failure is not None:
        reasons[cut.failure] += 1
    return Examined(cut, axes, free, reasons, inputs, found - started, tried_s)


def _in_short(reason: str) -> str:
    """A reason without the layer and the numbers that make it one of its own."""
    return reason.split(" (in ")[0].split(" (outputs differ")[0]


def judge_cut(entry: Entry) -> Outcome:
    """Whether the network can be cut in half exactly."""
    try:
        found = examine(*build(entry))
    except GraphError as error:
        return Outcome(entry.family, entry.name, "refused", reasons={error.what: 1})
    verdict = "WRONG" if found.cut.failure else "pruned" if found.cut.gone >= ENOUGH else "partly pinned"
    return Outcome(
        family=entry.family,
        name=entry.name,
        verdict=verdict if found.free else "refused",
        gone=found.cut.gone,
        axes=len(found.axes),
        cut=len(found.free),
        reasons=dict(found.reasons),
        discovery_s=found.discovery_s,
        tried_s=found.tried_s,
    )


def judge_exported(entry: Entry) -> Outcome:
    """Whether the cut network computes the same in ONNX Runtime, where it can be exported."""
    try:
        found = examine(*build(entry))
    except GraphError:
        return Outcome(entry.family, entry.name, "not cut")
    if found.cut.slim is None or not found.free:
        return Outcome(entry.family, entry.name, "not cut")
    slim, inputs = found.cut.slim.float(), in_precision(found.inputs, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        try:
            export(slim, path, inputs)
            session = get_runtime("onnxruntime").open(path, RuntimeSpec(kind="onnxruntime"))
            given = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
            feed = {item.name: tensor.numpy() for item, tensor in zip(session.inputs, given, strict=True)}
            actual = [torch.from_numpy(np.asarray(array)) for array in session.run(feed)]
        except HwpruneError as error:
            return Outcome(
                entry.family, entry.name, "no export", reasons={f"{error.got or error.what}"[:200]: 1}
            )
    rounding = compare(found.cut.expected, outputs_of(slim, inputs)).relative
    difference = compare(found.cut.expected, actual).relative
    equal = difference <= max(RUNTIME_TOLERANCE, 10 * rounding)
    return Outcome(entry.family, entry.name, "equal" if equal else "WRONG", gone=found.cut.gone)


def judge_peer(entry: Entry) -> Outcome:
    """What torch-pruning makes of the same network with the same weights."""
    import zoo_peer

    model, inputs = build(entry)
    modules = {name for name, _module in model.named_modules()}
    try:
        ends = [axis.name for axis in find_axes(model, inputs) if axis.pinned == "network output"]
    except GraphError:  # what we refuse is a question for others all the same
        ends = []
    dense = randomised(model, torch.Generator().manual_seed(0)).eval()
    verdict, gone = zoo_peer.judge(dense, inputs, [name for name in ends if name in modules], TOLERANCE)
    return Outcome(entry.family, entry.name, verdict, gone)


#: The questions, by the name that ``zoo.py run`` takes.
QUESTIONS = {"cut": judge_cut, "onnx": judge_exported, "peer": judge_peer}
