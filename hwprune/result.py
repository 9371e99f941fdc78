"""What a compression came to: the slim network, and what was taken out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hwprune.closed_loop import Turn
from hwprune.device.correction import Correction
from hwprune.graph.axes import BoolArray, ChannelAxis
from hwprune.plan import Plan
from hwprune.surgery.artifact import save_slim
from hwprune.surgery.forms import Form


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What the compression came to, before anything is exported.

    Attributes:
        groups: ``total``, ``kept`` and ``budget`` (groups, or microseconds predicted).
        predicted_us: Predicted latency of ``dense`` and ``slim``; ``None`` where an operator has no price.
        correction: From sums of the table's rows to these; ``None`` where an operator has no price.
        turns: Turns of the closed loop on the device.
        max_abs_difference: Slim against masked, in PyTorch.
    """

    groups: dict[str, float]
    predicted_us: dict[str, float | None]
    correction: Correction | None
    turns: tuple[Turn, ...]
    max_abs_difference: float


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A finished compression.

    Attributes:
        model: The slim network; a masked copy where the granularity does not narrow it.
        plan: What went, what stayed and why.
        report: Numbers.
        axes: The channel axes that could shrink.
        kept: Axis name to the mask of its kept channels.
        forms: Convolutions that became smaller layers, after the cuts.
        biases: Dotted names of layers whose bias holds the constants of dead channels.
    """

    model: nn.Module
    plan: Plan
    report: Report
    axes: tuple[ChannelAxis, ...]
    kept: dict[str, BoolArray]
    forms: tuple[Form, ...] = ()
    biases: tuple[str, ...] = ()

    def save(self, folder: Path, versions: Mapping[str, str]) -> None:
        """Writes the slim network as JSON and safetensors; see :func:`hwprune.save`.

        Args:
            folder: Made where it is missing.
            versions: Package versions to note.
        """
        save_slim(folder, self.model, self.axes, self.kept, versions, forms=self.forms, biases=self.biases)
