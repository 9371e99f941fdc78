"""The file ``structure.json``: what of which tensors and layers a slim network kept, and the checks of it."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from hwprune.errors import ArtifactError
from hwprune.graph.axes import IntArray
from hwprune.surgery.forms import Form, why_as_it_is
from hwprune.surgery.stand_in import Absence

SCHEMA = 1
STRUCTURE_FILE, WEIGHTS_FILE = "structure.json", "model.safetensors"
#: A structure larger than this is not one of ours: refused before it is parsed.
MAX_STRUCTURE_BYTES = 16 * 2**20

Position = Annotated[int, Field(ge=0, lt=2**40)]
Shape = Annotated[tuple[Position, ...], Field(max_length=8)]


class Cut(BaseModel):
    """What was kept of one tensor dimension."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tensor: str
    dim: int = Field(ge=0, lt=8)
    size: Position
    kept: tuple[Position, ...] = Field(min_length=1)


class Reshaped(BaseModel):
    """A convolution in another form, and the positions of its first filter that live."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    module: str
    form: Literal["cropped", "lowered"]
    positions: tuple[Position, ...] = Field(min_length=1)


class Structure(BaseModel):
    """The contents of ``structure.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_: int = Field(alias="schema")
    versions: dict[str, str]
    model_class: str
    cuts: tuple[Cut, ...]
    absent: dict[str, Absence] = Field(default_factory=dict)
    reshaped: tuple[Reshaped, ...] = ()
    biases: tuple[str, ...] = ()
    shapes: dict[str, Shape]
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")


def shortened(value: object) -> str:
    """A value from a file nobody vouches for, short and on one line."""
    return reprlib.repr(value)


def check_file(path: Path, what: str) -> None:
    """Checks that a file of the folder is one, and lies in it.

    Raises:
        ArtifactError: If it is missing, no file, or a link that leads out of the folder.
    """
    if not path.is_file():
        raise ArtifactError(
            f"not a slim model: {what} missing",
            where=path.parent,
            expected=f"{STRUCTURE_FILE} and {WEIGHTS_FILE}",
            hint="point to the folder that hwprune.save or hwprune prune wrote",
        )
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise ArtifactError(
            "a file of the slim model is a link that leads out of its folder",
            where=path,
            expected="the file itself",
            hint="copy the file to where the link is, if you trust it",
        )


def read_structure(folder: Path) -> Structure:
    """Reads and validates ``structure.json``.

    Raises:
        ArtifactError: If it is missing, too large, malformed or of another schema.
    """
    path = folder / STRUCTURE_FILE
    check_file(path, "the structure is")
    if path.stat().st_size > MAX_STRUCTURE_BYTES:
        raise ArtifactError(
            "the structure is too large to be one",
            where=path,
            expected=f"at most {MAX_STRUCTURE_BYTES} bytes",
            got=path.stat().st_size,
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (ValueError, RecursionError, OSError) as error:
        raise ArtifactError("the structure is not JSON", where=path, got=shortened(str(error))) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ArtifactError(
            "the structure is of another version",
            where=path,
            expected=f"schema {SCHEMA}",
            got=shortened(schema),
        )
    try:
        return Structure.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = shortened(".".join(map(str, first["loc"])))
        raise ArtifactError(
            f"the structure is malformed at {key}",
            where=path,
            expected=first["msg"],
            got=shortened(first["input"]),
        ) from error


def sealed(structure: Structure) -> str:
    """SHA-256 of a structure, all of it but the hash of the weights, in which it is noted.

    Args:
        structure: What is written, or was read.
    """
    content = structure.model_dump(mode="json", by_alias=True, exclude={"weights_sha256"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_absent(structure: Structure, name: str) -> bool:
    """Whether a layer is one of those taken out, or lies inside one."""
    return any(f"{name}.".startswith(f"{layer}.") for layer in structure.absent)


def check_absent(folder: Path, structure: Structure, own: Collection[str]) -> None:
    """Checks that the layers of removed branches are layers of a fresh model, none within another.

    Args:
        folder: Where the structure is from, for the message.
        structure: What was read.
        own: Dotted names of the modules of the fresh model.

    Raises:
        ArtifactError: If one is not.
    """
    for name in structure.absent:
        if not name or name not in own:
            raise ArtifactError(
                "the artefact is from another network",
                where=f"{folder / STRUCTURE_FILE}: {shortened(name)}",
                expected="a layer of the network",
                got="no such layer",
                hint="pass a fresh, unpruned instance of the class that was pruned",
            )
        if any(name.startswith(f"{other}.") for other in structure.absent):
            raise ArtifactError(
                "a layer is taken out of a layer that is taken out itself",
                where=f"{folder / STRUCTURE_FILE}: {shortened(name)}",
                expected="one of them",
                got="both",
            )


def checked_positions(
    folder: Path, structure: Structure, own: Mapping[str, tuple[int, ...]]
) -> dict[tuple[str, int], IntArray]:
    """The cuts as positions, checked against the tensors of a fresh model.

    Args:
        folder: Where the structure is from, for the message.
        structure: What was read.
        own: Name to shape of every parameter and buffer of the fresh model.

    Raises:
        ArtifactError: If a cut fits no tensor, comes twice, or keeps what is not there.
    """
    positions: dict[tuple[str, int], IntArray] = {}
    for cut in structure.cuts:
        shape = own.get(cut.tensor)
        where = f"{folder / STRUCTURE_FILE}: {shortened(cut.tensor)} dim {cut.dim}"
        if shape is None or cut.dim >= len(shape) or shape[cut.dim] != cut.size:
            raise ArtifactError(
                "the artefact is from another network",
                where=where,
                expected=f"size {cut.size}",
                got="no such tensor" if shape is None else f"shape {shape}",
                hint="pass a fresh, unpruned instance of the class that was pruned",
            )
        if (cut.tensor, cut.dim) in positions:
            raise ArtifactError("a dimension is cut twice", where=where, expected="one cut", got="two")
        positions[cut.tensor, cut.dim] = _ascending(cut.kept, cut.size, where)
    return positions


def checked_forms(
    folder: Path, structure: Structure, model: nn.Module, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Form, ...]:
    """The convolutions in another form, checked against a fresh model.

    Args:
        folder: Where the structure is from, for the message.
        structure: What was read.
        model: The fresh model.
        shapes: Name to shape of its tensors when their cuts are made.

    Raises:
        ArtifactError: If a layer is none whose form can be changed, comes twice, or lives where it is not.
    """
    forms: dict[str, Form] = {}
    layers = {name for name, _module in model.named_modules()}
    for item in structure.reshaped:
        where = f"{folder / STRUCTURE_FILE}: {shortened(item.module)}"
        reason = why_as_it_is(model, item.module) if item.module in layers else "no such layer"
        if reason is None and item.module in forms:
            reason = "it comes twice"
        if reason is None and is_absent(structure, item.module):
            reason = "it is taken out"
        if reason is not None:
            raise ArtifactError(
                "the structure changes a layer that cannot be changed",
                where=where,
                expected="a plain two-dimensional convolution, once",
                got=reason,
                hint="pass a fresh, unpruned instance of the class that was pruned",
            )
        size = math.prod(shapes[f"{item.module}.weight"][1:])
        positions = _ascending(item.positions, size, where)
        forms[item.module] = Form(item.module, item.form, tuple(positions.tolist()))
    return tuple(forms.values())


def _ascending(values: tuple[int, ...], size: int, where: str) -> IntArray:
    """Positions of a dimension; raises where they are none, or not in order."""
    found = np.array(values, dtype=np.int64)
    if (np.diff(found) <= 0).any() or found[-1] >= size:
        raise ArtifactError(
            "the kept positions are not ascending positions of the dimension",
            where=where,
            expected=f"ascending integers from 0 to {size - 1}",
            got=shortened(values),
        )
    return found


def cut_shape(
    name: str, shape: tuple[int, ...], positions: Mapping[tuple[str, int], IntArray]
) -> tuple[int, ...]:
    """The shape of a tensor when its cuts are made."""
    return tuple(
        positions[name, dim].size if (name, dim) in positions else size for dim, size in enumerate(shape)
    )
