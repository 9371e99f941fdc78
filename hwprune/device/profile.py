"""Device profiles: hardware x runtime x precision x threads x batch, as data.

A profile is a folder with ``profile.toml`` (schema 1) and, once measured, a latency table. A profile without
a table is a template: it states rules for a device that nobody has measured yet.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hwprune.device.steps import Steps
from hwprune.device.table import LatencyTable
from hwprune.errors import ProfileError
from hwprune.operators import Operator

SCHEMA = 1
PROFILE_FILE = "profile.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _Section(BaseModel):
    """A table of the file: unknown keys are errors, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class Rule(_Section):
    """What may leave together in the operators it matches.

    Attributes:
        op: Operator kind, or ``*`` for every kind.
        groups: ``depthwise`` matches depthwise operators only; nothing matches any, but a depthwise
            operator is decided by a rule that says so where there is one.
        granularity: What a group is.
        align: For channels: how many leave together, and the step of the latency staircase.
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
    align: int = Field(default=1, ge=1)
    period: int | None = Field(default=None, ge=1)
    divisor: int = Field(default=1, ge=1)
    n: int | None = Field(default=None, ge=1)
    m: int | None = Field(default=None, ge=1)
    axis: Literal["input", "output"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Rule:
        if self.period is not None and self.period % self.align:
            raise ValueError(f"a period that is a multiple of align = {self.align}")
        if self.align % self.divisor:
            raise ValueError(f"a divisor that divides align = {self.align}")
        of_blocks = {"n": self.n, "m": self.m}
        if self.granularity != "block" and any(value is not None for value in of_blocks.values()):
            raise ValueError("n and m with granularity block only")
        if self.granularity == "block" and not (self.n and self.m and self.n < self.m):
            raise ValueError("n and m with n < m for granularity block")
        return self

    def matches(self, operator: Operator) -> bool:
        """Whether the rule decides for ``operator``."""
        return self.op in ("*", operator.kind) and (self.groups is None or operator.depthwise)


class LatencySpec(_Section):
    """The table and how its rows add up to a network."""

    table: str | None = None
    overhead_us: float = Field(default=0.0, ge=0)
    per_operator_us: float = Field(default=0.0, ge=0)
    calibration: float = Field(default=1.0, gt=0)


class Provenance(_Section):
    """Where the numbers come from.

    Attributes:
        noise: ``p90 / p10 - 1`` of the rows, their median.
        reference_us: What the reference kernel of the builder took; rows that are added later must be
            measured while it takes as long.
        busy: Whether the machine was busy, and the numbers were wanted regardless.
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


class DeviceProfile(_Section):
    """One device.

    Attributes:
        folder: Where it was read from; ``None`` for one made in memory.
        rows: A table held in memory instead of in a file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    schema_: Literal[1] = Field(alias="schema")
    name: str
    hardware: Hardware
    runtime: RuntimeSpec
    rule: tuple[Rule, ...] = Field(min_length=1)
    latency: LatencySpec
    provenance: Provenance
    folder: Path | None = Field(default=None, exclude=True)
    rows: LatencyTable | None = Field(default=None, exclude=True)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules; the first that matches decides."""
        return self.rule

    @property
    def table(self) -> LatencyTable | None:
        """The latency table, ``None`` for a template.

        Raises:
            ProfileError: If the file is missing, malformed or of another batch size or precision.
        """
        if self.rows is not None or self.latency.table is None or self.folder is None:
            return self.rows
        path = self.folder / self.latency.table
        command = self.build_command()
        try:
            table = _read_once(path, path.stat().st_mtime_ns, command)
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

    def build_command(self) -> str:
        """The command that measures what the table lacks."""
        spec, defaults = self.runtime, RuntimeSpec(kind=self.runtime.kind)
        options = [
            f" --{name} {getattr(spec, name)}"
            for name in ("precision", "threads", "batch")
            if getattr(spec, name) != getattr(defaults, name)
        ]
        out = self.folder or self.name
        return f"hwprune profile build --runtime {spec.kind}{''.join(options)} --for MODEL:CxHxW --out {out}"

    @property
    def prices_zeros(self) -> bool:
        """Whether weights of zero cost less: a rule says so, and the table has rows at several densities."""
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
        """How many channels of ``operator`` leave together; 1 where no rule says."""
        rule = self.rule_for(operator)
        return rule.align if rule is not None and rule.granularity == "channel" else 1

    def steps_for(self, operator: Operator) -> Steps:
        """The latency staircase of ``operator`` along its channels; steps of 1 where no rule says.

        A convolution in groups stays divisible by them at every width.
        """
        unit = operator.out_channels // operator.in_channels if operator.depthwise else operator.groups
        rule = self.rule_for(operator)
        if rule is None or rule.granularity != "channel":
            return Steps(unit, unit)
        align = math.lcm(rule.align, unit)
        return Steps(align, math.lcm(rule.period or align, align), rule.divisor)


@lru_cache(maxsize=32)
def _read_once(path: Path, changed: int, command: str) -> LatencyTable:
    """A table is read when it is first needed, and again only where the file has changed since."""
    return LatencyTable.read(path, command)


def shipped_folder() -> Path:
    """The profiles that come with the package: inside a wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "profiles"
    return inside if inside.is_dir() else package.parent / "profiles"


def search_path(first: Path | None = None) -> tuple[Path, ...]:
    """Folders that profiles are looked for in, in order.

    Args:
        first: A folder given by the user, looked in before the others.
    """
    from_environment = os.environ.get("HWPRUNE_PROFILES")
    candidates = [
        first,
        Path(from_environment) if from_environment else None,
        user_data_path("hwprune") / "profiles",
        shipped_folder(),
    ]
    return tuple(folder for folder in candidates if folder is not None)


def find_profiles(search: Path | None = None) -> tuple[DeviceProfile, ...]:
    """Every profile on the search path, by name; the first of a name counts.

    Args:
        search: A folder looked in first.

    Raises:
        ProfileError: If a profile is malformed, or ``search`` is no folder.
    """
    if search is not None and not search.is_dir():
        raise ProfileError("no such folder of profiles", where=search, expected="a folder")
    found: dict[str, DeviceProfile] = {}
    for folder in _profile_folders(search):
        if folder.name not in found:
            found[folder.name] = read_profile(folder)
    return tuple(found[name] for name in sorted(found))


def load_profile(name_or_folder: str | Path, search: Path | None = None) -> DeviceProfile:
    """Loads a profile by name or from its folder.

    Args:
        name_or_folder: A name on the search path, or a folder that holds ``profile.toml``.
        search: A folder looked in first.

    Raises:
        ProfileError: If there is none, or it is malformed.
    """
    as_folder = Path(name_or_folder)
    if (as_folder / PROFILE_FILE).is_file():
        return read_profile(as_folder)
    names: list[str] = []
    for folder in _profile_folders(search):
        if folder.name == str(name_or_folder):
            return read_profile(folder)
        names.append(folder.name)
    close = difflib.get_close_matches(str(name_or_folder), names, n=1)
    raise ProfileError(
        f"unknown device {str(name_or_folder)!r}",
        expected=f"one of {', '.join(sorted(set(names))) or '(none found)'}, or a folder with {PROFILE_FILE}",
        hint=f"did you mean {close[0]!r}?" if close else "list them with: hwprune devices",
    )


def _profile_folders(search: Path | None) -> Iterator[Path]:
    for root in search_path(search):
        if root.is_dir():
            yield from sorted(folder for folder in root.iterdir() if (folder / PROFILE_FILE).is_file())


def read_profile(folder: Path) -> DeviceProfile:
    """Reads and validates ``folder/profile.toml``.

    Raises:
        ProfileError: If it is not TOML, or a key is missing, unknown or of the wrong kind; the message names
            file, key, what was expected and what stands there.
    """
    path = folder / PROFILE_FILE
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError("the profile is not TOML", where=path, got=error) from error
    except OSError as error:
        raise ProfileError("the profile cannot be read", where=path, got=error) from error
    try:
        profile = DeviceProfile.model_validate({**content, "folder": folder.resolve()})
    except ValidationError as error:
        raise _told(path, content, error) from error
    if not is_name(profile.name) or profile.name != folder.resolve().name:
        raise ProfileError(
            "the profile's name is not that of its folder",
            where=f"{path}, key name",
            expected=folder.resolve().name,
            got=profile.name,
        )
    table = profile.latency.table
    if table is not None and not (folder / table).is_file():
        raise ProfileError(
            "the latency table is missing",
            where=f"{path}, key latency.table",
            expected=f"the file {table} beside the profile",
            hint="measure it with: hwprune profile build, or leave the key out for a template",
        )
    if table is not None and Path(table).name != table:
        raise ProfileError(
            "the latency table lies outside of the profile's folder",
            where=f"{path}, key latency.table",
            expected="a file name",
            got=table,
        )
    return profile


def is_name(text: str) -> bool:
    """Whether a profile may have this name.

    >>> is_name("x86-avx2-ort"), is_name(".hidden")
    (True, False)
    """
    return _NAME.fullmatch(text) is not None


def _told(path: Path, content: dict[str, Any], error: ValidationError) -> ProfileError:
    """The first validation error in the words of a user."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    got: object = first["input"]
    hint = None
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the keys here are {', '.join(known)}"
        return ProfileError("unknown key in the profile", where=f"{path}, key {key}", got=got, hint=hint)
    if first["type"] == "missing":
        unknown = [other["loc"][-1] for other in error.errors() if other["type"] == "extra_forbidden"]
        close = difflib.get_close_matches(location[-1], [str(name) for name in unknown], n=1)
        hint = f"{close[0]!r} looks like a misspelling of it" if close else None
        return ProfileError("a key of the profile is missing", where=f"{path}, key {key}", hint=hint)
    return ProfileError(
        "a value of the profile is wrong", where=f"{path}, key {key}", expected=first["msg"], got=repr(got)
    )


_SECTIONS: dict[str, type[BaseModel]] = {
    "hardware": Hardware,
    "runtime": RuntimeSpec,
    "rule": Rule,
    "latency": LatencySpec,
    "provenance": Provenance,
}


def _known_keys(location: list[str]) -> list[str]:
    """The keys of the section at ``location``, as the file spells them."""
    if not location:
        return ["schema", "name", *_SECTIONS]
    section = _SECTIONS.get(location[0])
    return list(section.model_fields) if section else []
