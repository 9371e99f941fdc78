"""Device profiles: hardware x runtime x precision x threads x batch, as data.

A profile is a folder with ``profile.toml`` (schema 1) and, once measured, a latency table. A profile without
a table is a template: it states rules for a device that nobody has measured yet.
"""

from __future__ import annotations

import difflib
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from hwprune.device.commands import PLACEHOLDER
from hwprune.device.correction import Correction
from hwprune.device.kernel_factors import NO_FACTORS, KernelFactors
from hwprune.device.kinds import KINDS
from hwprune.device.runtimes import PROVIDERS, REGISTRY
from hwprune.device.steps import Steps
from hwprune.device.table import LatencyTable
from hwprune.device.working_set import PRUNED_PART, working_set
from hwprune.errors import InputError, ProfileError
from hwprune.operators import Operator

SCHEMA = 1
PROFILE_FILE = "profile.toml"
#: No staircase has steps beyond it.
_WIDEST = 1 << 20


class _Section(BaseModel):
    """A table of the file: unknown keys are errors, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


def _one_of(value: str, known: Sequence[str]) -> str:
    """The value, which must be known; the error says what is, and what it looks like."""
    if value in known:
        return value
    close = difflib.get_close_matches(value, known, n=1)
    raise ValueError(f"one of {', '.join(known)}" + (f" (did you mean {close[0]!r}?)" if close else ""))


class Hardware(_Section):
    """What the table was measured on."""

    vendor: str
    model: str
    isa: str
    cores: int = Field(ge=1)


class RuntimeSpec(_Section):
    """What executes the network, and how."""

    kind: str
    version: str = ""
    provider: str = ""
    precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    threads: int = Field(default=1, ge=1)
    batch: int = Field(default=1, ge=1)

    @field_validator("kind")
    @classmethod
    def _there_is(cls, kind: str) -> str:
        return _one_of(kind, sorted(REGISTRY))

    @field_validator("provider")
    @classmethod
    def _of_the_kind(cls, provider: str, info: ValidationInfo) -> str:
        kind = info.data.get("kind", "")  # not there where it is wrong itself
        known = PROVIDERS.get(kind, ())
        if provider and provider not in known:
            raise ValueError(f"a provider of {kind}: {', '.join(known) or 'there are none to choose from'}")
        return provider


class Rule(_Section):
    """What may leave together in the operators it matches.

    Attributes:
        op: Operator kind, or ``*`` for every kind.
        groups: ``depthwise`` matches depthwise operators only; nothing matches any, but a depthwise
            operator is decided by a rule that says so where there is one.
        granularity: What a group is.
        align: For channels: the step of the latency staircase. So many leave together; of no more than one
            step, parts of it (:attr:`~hwprune.device.steps.Steps.fine`).
        period: For channels: how many output channels lie between two equal places of the staircase, a
            multiple of ``align``; nothing where every step is like the next.
        divisor: For channels: numbers of input channels that it does not divide run another kernel.
        n: For blocks: how many weights of a block stay.
        m: For blocks: weights per block.
        axis: For blocks: the axis they lie along.
    """

    op: str
    groups: Literal["depthwise"] | None = None
    granularity: Literal["channel", "block", "shape", "weight", "branch"]
    align: int = Field(default=1, ge=1, le=_WIDEST)
    period: int | None = Field(default=None, ge=1, le=_WIDEST)
    divisor: int = Field(default=1, ge=1, le=_WIDEST)
    n: int | None = Field(default=None, ge=1)
    m: int | None = Field(default=None, ge=1)
    axis: Literal["input", "output"] | None = None

    @field_validator("op")
    @classmethod
    def _known(cls, op: str) -> str:
        return _one_of(op, ("*", *KINDS))

    @field_validator("period")
    @classmethod
    def _of_whole_steps(cls, period: int | None, info: ValidationInfo) -> int | None:
        align = info.data.get("align", 1)
        if period is not None and period % align:
            raise ValueError(f"a multiple of align = {align}")
        return period

    @field_validator("divisor")
    @classmethod
    def _of_a_step(cls, divisor: int, info: ValidationInfo) -> int:
        align = info.data.get("align", divisor)
        if align % divisor:
            raise ValueError(f"a divisor of align = {align}")
        return divisor

    @model_validator(mode="after")
    def _consistent(self) -> Rule:
        of_blocks = {"n": self.n, "m": self.m}
        if self.granularity != "block" and any(value is not None for value in of_blocks.values()):
            raise ValueError("n and m with granularity block only")
        if self.granularity == "block" and not (self.n and self.m and self.n < self.m):
            raise ValueError("n and m with n < m for granularity block")
        if self.granularity != "block" and self.axis is not None:
            raise ValueError("axis with granularity block only")
        return self

    def matches(self, operator: Operator) -> bool:
        """Whether the rule decides for ``operator``."""
        return self.op in ("*", operator.kind) and (self.groups is None or operator.depthwise)


class LatencySpec(_Section):
    """The table and how its rows add up to a network.

    Attributes:
        table: File of the rows, beside the profile's.
        overhead_us: Added to the sum of rows.
        per_operator_us: Added for every operator.
        calibration: Multiplies the sum of rows.
        kernels: Multiplies rows of some kinds besides; nothing where all kinds are alike.
        held_mib: Weights that stay in a cache from one run to the next, in MiB at single precision.
        spilled_us: What each MiB beyond costs a network whose rows were measured among no more than that.
    """

    table: str | None = None
    overhead_us: float = Field(default=0.0, ge=0)
    per_operator_us: float = Field(default=0.0, ge=0)
    calibration: float = Field(default=1.0, gt=0)
    kernels: KernelFactors | None = None
    held_mib: float | None = Field(default=None, gt=0)
    spilled_us: float | None = Field(default=None, gt=0)

    @field_validator("spilled_us")
    @classmethod
    def _beyond_something(cls, spilled_us: float | None, info: ValidationInfo) -> float | None:
        if spilled_us is not None and info.data.get("held_mib") is None:
            raise ValueError("nothing where held_mib is not given: it says beyond which weights that is paid")
        return spilled_us

    @property
    def correction(self) -> Correction:
        """From sums of rows to latencies of networks."""
        if self.held_mib is None or self.spilled_us is None:
            return Correction(self.calibration, self.overhead_us)
        return Correction(self.calibration, self.overhead_us, self.held_mib, self.spilled_us)


class Provenance(_Section):
    """Where the numbers come from.

    Attributes:
        noise: ``p90 / p10 - 1`` of the rows, their median.
        reference_us: What the reference kernel of the builder takes at the pace that all rows are scaled
            to; rows that are added later must be measured while it takes about as long.
        busy: Whether the machine was busy, and the numbers were wanted regardless.
        passes: Passes over all rows; the least disturbed measurement of each counts. What a later pass first
            asked for was measured less often.
    """

    source: Literal["measured", "estimated", "template"]
    command: str = ""
    date: str = ""
    host: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    runs: int = Field(default=0, ge=0)
    noise: float | None = Field(default=None, ge=0)
    reference_us: float | None = Field(default=None, gt=0)
    busy: bool = False
    passes: int = Field(default=1, ge=1)


class DeviceProfile(_Section):
    """One device.

    Attributes:
        folder: Where it was read from; ``None`` for one made in memory.
        rows: A table held in memory instead of in a file.
        network: What missing rows are wanted for, for messages; see :meth:`wanted_for`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)

    schema_: Literal[1] = Field(alias="schema")
    name: str
    hardware: Hardware
    runtime: RuntimeSpec
    rule: tuple[Rule, ...] = Field(min_length=1, strict=False)
    latency: LatencySpec
    provenance: Provenance
    folder: Path | None = Field(default=None, exclude=True)
    rows: LatencyTable | None = Field(default=None, exclude=True)
    network: str | None = Field(default=None, exclude=True)

    @field_validator("schema_", mode="before")
    @classmethod
    def _a_number(cls, schema: object) -> object:
        if type(schema) is not int:  # True and 1.0 equal 1
            raise ValueError(f"{SCHEMA}")
        return schema

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules; the first that matches decides."""
        return self.rule

    @property
    def table(self) -> LatencyTable | None:
        """The latency table, its prices by the factors of the profile; ``None`` for a template.

        Raises:
            ProfileError: If the file is missing, malformed or of another batch size or precision.
        """
        factors = self.latency.kernels or NO_FACTORS
        if self.rows is not None:
            return self.rows if self.rows.factors == factors else replace(self.rows, factors=factors)
        if self.latency.table is None or self.folder is None:
            return None
        path = self.folder / self.latency.table
        command = self.build_command()
        try:
            table = _read_once(path, path.stat().st_mtime_ns, command, factors)
        except OSError as error:
            raise ProfileError("the latency table cannot be read", where=path, got=error) from error
        wanted, got = (self.runtime.batch, self.runtime.precision), (table.batch, table.precision)
        if wanted != got:
            raise ProfileError(
                "the table was measured with another batch size or precision than the profile says",
                where=path,
                expected=f"batch {wanted[0]}, {wanted[1]}",
                got=f"batch {got[0]}, {got[1]}",
            )
        return table

    def row_working_set(self, operators: Sequence[Operator]) -> int:
        """Bytes among which the rows of a network that is to be pruned are measured.

        Where zeros have prices, networks keep their widths, and all of their weights count.

        Args:
            operators: Of the dense network; copies with weights of zero do not count.
        """
        dense = (operator for operator in operators if operator.density == 1)
        return working_set(dense, 1.0 if self.prices_zeros else PRUNED_PART)

    def for_network(self, operators: Sequence[Operator], *, pruned: bool) -> DeviceProfile:
        """The profile with, of rows that were measured among several numbers of bytes, those for a network.

        Rows that were measured among more weights than a cache holds need no price for those that leave it.

        Args:
            operators: Of the network, with copies at other densities at most where it is to be pruned.
            pruned: Whether it is to be pruned, and versions with fewer of its weights are to be priced.
        """
        table = self.table
        if table is None:
            return self
        # Zeros leave the rows of a network among its dense weights, whichever rows those are.
        size = (
            self.row_working_set(operators)
            if pruned
            else working_set(replace(operator, density=1.0) for operator in operators)
        )
        wanted = [(operator, self.steps_for(operator)) for operator in operators]
        chosen = table.for_network(wanted, size)
        latency = self.latency
        if latency.held_mib is not None and chosen.bytes_among(operators) > latency.held_mib * (1 << 20):
            latency = latency.model_copy(update={"held_mib": None, "spilled_us": None})
        if chosen is table and latency is self.latency:
            return self
        return self.model_copy(update={"rows": chosen, "latency": latency})

    def wanted_for(self, network: str) -> DeviceProfile:
        """The profile, naming a network in the command that measures what the table lacks.

        Args:
            network: As ``hwprune profile build --for`` takes it.
        """
        return self.model_copy(update={"network": network})

    def build_command(self, networks: Sequence[str] = ()) -> str:
        """The command that measures what the table lacks.

        Args:
            networks: What it is to price; by default the network that the profile is wanted for.
        """
        spec, defaults = self.runtime, RuntimeSpec(kind=self.runtime.kind)
        options = [
            word
            for name in ("precision", "threads", "batch")
            if getattr(spec, name) != getattr(defaults, name)
            for word in (f"--{name}", str(getattr(spec, name)))
        ]
        covered = [word for name in networks or [self.network or PLACEHOLDER] for word in ("--for", name)]
        out = str(self.folder or self.name)
        return shlex.join(
            ["hwprune", "profile", "build", "--runtime", spec.kind, *options, *covered, "--out", out]
        )

    @property
    def prices_zeros(self) -> bool:
        """Whether weights of zero cost less, as a rule says; the table then has rows at several densities."""
        return any(rule.granularity == "weight" for rule in self.rule)

    @property
    def granularity(self) -> str:
        """What networks are pruned by where nobody says: by the first rule for convolutions, or of all."""
        decides = self.rule_for(Operator("conv", 2, 2))
        return (decides or self.rule[0]).granularity

    def rule_for(self, operator: Operator) -> Rule | None:
        """The first rule that matches ``operator``; rules for depthwise operators come before the others."""
        matching = [rule for rule in self.rule if rule.matches(operator)]
        return min(matching, key=lambda rule: rule.groups is None, default=None)

    def align_for(self, operator: Operator) -> int:
        """How many output channels of ``operator`` leave together; 1 where no rule says."""
        rule = self.rule_for(operator)
        if rule is None or rule.granularity != "channel":
            return 1
        # Who reads them may be of another kind, which is not to run its other kernel.
        divisor = math.lcm(*(each.divisor for each in self.rule if each.granularity == "channel"))
        steps = self.steps_for(operator)
        divisor = divisor if steps.divisor > 1 else 1
        return replace(steps, align=rule.align, divisor=divisor).unit(operator.out_channels)

    def steps_for(self, operator: Operator) -> Steps:
        """The latency staircase of ``operator`` along its channels; steps of 1 where no rule says.

        A convolution in groups stays divisible by them at every width.
        """
        unit = operator.out_channels // operator.in_channels if operator.depthwise else operator.groups
        rule = self.rule_for(operator)
        if rule is None or rule.granularity != "channel":
            return Steps(unit, unit, parted=False)
        align = math.lcm(rule.align, unit)
        return Steps(align, math.lcm(rule.period or align, align), rule.divisor, parted=unit == 1)

    def grouped_steps_for(self, operator: Operator) -> Steps | None:
        """The staircase of a convolution in as many groups as a depthwise one, with more inputs to each."""
        if not operator.depthwise:
            return None
        return self.steps_for(replace(operator, in_channels=2 * operator.in_channels))


def check_profile(profile: object, where: str) -> None:
    """Raises :class:`InputError` unless it is a profile, rather than the name of one.

    Args:
        profile: What was given for one.
        where: To what.
    """
    if not isinstance(profile, DeviceProfile):
        raise InputError(
            "this is no device profile",
            where=f"{where}, profile",
            expected="what hwprune.load_profile(...) returns",
            got=repr(profile) if isinstance(profile, str) else type(profile).__name__,
        )


@lru_cache(maxsize=32)
def _read_once(path: Path, changed: int, command: str, factors: KernelFactors) -> LatencyTable:
    """A table is read when it is first needed, and again only where the file has changed since."""
    return replace(LatencyTable.read(path, command), factors=factors)
