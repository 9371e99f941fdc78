"""Slim networks on disk: structure as JSON, weights as safetensors, no pickle.

``structure.json`` says which positions of which tensors were kept; loading narrows a fresh instance of the
user's own class accordingly and fills in the weights. Everything is checked before anything is changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hwprune.errors import ArtifactError
from hwprune.files import replacing, write_text
from hwprune.graph.axes import BoolArray, ChannelAxis, IntArray, kept_positions
from hwprune.surgery.rebuild import narrow

SCHEMA = 1
STRUCTURE_FILE, WEIGHTS_FILE = "structure.json", "model.safetensors"
#: A structure larger than this is not one of ours: refused before it is parsed.
MAX_STRUCTURE_BYTES = 64 * 2**20


class Cut(BaseModel):
    """What was kept of one tensor dimension."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensor: str
    dim: int = Field(ge=0, le=8)
    size: int = Field(ge=1)
    kept: tuple[int, ...] = Field(min_length=1)


class Structure(BaseModel):
    """The contents of ``structure.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: int = Field(alias="schema")
    versions: dict[str, str]
    model_class: str
    cuts: tuple[Cut, ...]
    shapes: dict[str, tuple[int, ...]]
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")


def save_slim(
    folder: Path,
    slim: nn.Module,
    axes: Sequence[ChannelAxis],
    kept: Mapping[str, BoolArray],
    versions: Mapping[str, str],
) -> None:
    """Writes ``structure.json`` and ``model.safetensors``, each atomically.

    Args:
        folder: Created where it is missing.
        slim: The narrowed network.
        axes: The axes of the dense network.
        kept: Axis name to the mask of kept channels.
        versions: Package versions to note.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = _unique_tensors(slim)
    weights = folder / WEIGHTS_FILE
    with replacing(weights) as temporary:
        save_file(state, str(temporary))
        digest = _sha256(temporary)
    sizes = {(part.tensor, part.dim): part.channels.size for axis in axes for part in axis.slices}
    structure = Structure(
        schema=SCHEMA,
        versions=dict(versions),
        model_class=f"{type(slim).__module__}.{type(slim).__qualname__}",
        cuts=tuple(
            Cut(tensor=tensor, dim=dim, size=sizes[tensor, dim], kept=tuple(positions.tolist()))
            for (tensor, dim), positions in sorted(kept_positions(axes, kept).items())
        ),
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        weights_sha256=digest,
    )
    write_text(folder / STRUCTURE_FILE, structure.model_dump_json(by_alias=True, indent=1) + "\n")


def load_slim(folder: Path, model: nn.Module) -> nn.Module:
    """Narrows ``model`` as the artefact says and fills in its weights.

    Args:
        folder: What :func:`save_slim` wrote.
        model: A fresh, unpruned instance; narrowed in place and returned, trainable. It is not touched
            where anything is wrong.

    Raises:
        ArtifactError: If the folder is incomplete, tampered with, of another version or of another
            network.
    """
    structure = read_structure(folder)
    state = _read_weights(folder, structure)
    own = {name: tuple(tensor.shape) for name, tensor in _unique_tensors(model).items()}
    positions = _checked_positions(folder, structure, own)
    expected = {name: _cut_shape(name, shape, positions) for name, shape in own.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    _check_shapes(folder, expected, found)
    narrow(model, positions)
    model.load_state_dict(state, strict=False)
    return model


def read_structure(folder: Path) -> Structure:
    """Reads and validates ``structure.json``.

    Raises:
        ArtifactError: If it is missing, too large, malformed or of another schema.
    """
    path = folder / STRUCTURE_FILE
    if not path.is_file():
        raise ArtifactError(
            "not a slim model: the structure is missing",
            where=folder,
            expected=f"{STRUCTURE_FILE} and {WEIGHTS_FILE}",
            hint="point to the folder that hwprune.save or hwprune prune wrote",
        )
    if path.stat().st_size > MAX_STRUCTURE_BYTES:
        raise ArtifactError(
            "the structure is too large to be one",
            where=path,
            expected=f"at most {MAX_STRUCTURE_BYTES} bytes",
            got=path.stat().st_size,
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError("the structure is not JSON", where=path, got=error) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ArtifactError(
            "the structure is of another version", where=path, expected=f"schema {SCHEMA}", got=schema
        )
    try:
        return Structure.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"the structure is malformed at {key}", where=path, expected=first["msg"], got=first["input"]
        ) from error


def _read_weights(folder: Path, structure: Structure) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ArtifactError("the weights are missing", where=folder, expected=WEIGHTS_FILE)
    digest = _sha256(path)
    if digest != structure.weights_sha256:
        raise ArtifactError(
            "the weights are not those that the structure was written with",
            where=path,
            expected=f"SHA-256 {structure.weights_sha256[:12]}...",
            got=f"{digest[:12]}...",
            hint="copy the folder again, both files together",
        )
    try:
        return load_file(str(path))
    except (SafetensorError, ValueError, OSError) as error:
        raise ArtifactError("the weights cannot be read", where=path, got=error) from error


def _checked_positions(
    folder: Path, structure: Structure, own: Mapping[str, tuple[int, ...]]
) -> dict[tuple[str, int], IntArray]:
    """The cuts as positions, checked against the tensors of the fresh model."""
    positions: dict[tuple[str, int], IntArray] = {}
    for cut in structure.cuts:
        shape = own.get(cut.tensor)
        where = f"{folder / STRUCTURE_FILE}: {cut.tensor} dim {cut.dim}"
        if shape is None or cut.dim >= len(shape) or shape[cut.dim] != cut.size:
            raise ArtifactError(
                "the artefact is from another network",
                where=where,
                expected=f"size {cut.size}",
                got="no such tensor" if shape is None else f"shape {shape}",
                hint="pass a fresh, unpruned instance of the class that was pruned",
            )
        kept = np.array(cut.kept, dtype=np.int64)
        if (np.diff(kept) <= 0).any() or kept[0] < 0 or kept[-1] >= cut.size:
            raise ArtifactError(
                "the kept positions are not ascending positions of the dimension",
                where=where,
                expected=f"ascending integers from 0 to {cut.size - 1}",
                got=f"{kept[:8].tolist()}...",
            )
        positions[cut.tensor, cut.dim] = kept
    return positions


def _cut_shape(
    name: str, shape: tuple[int, ...], positions: Mapping[tuple[str, int], IntArray]
) -> tuple[int, ...]:
    return tuple(
        positions[name, dim].size if (name, dim) in positions else size for dim, size in enumerate(shape)
    )


def _check_shapes(
    folder: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ArtifactError(
                "the weights do not fit the network",
                where=f"{folder / WEIGHTS_FILE}: {name}",
                expected=expected.get(name, "no such tensor"),
                got=found.get(name, "nothing"),
            )


def _unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with tensors that go by several names listed once."""
    unique: dict[str, Tensor] = {}
    seen: set[int] = set()
    entries: list[tuple[str, Any]] = list(model.state_dict(keep_vars=True).items())
    for name, tensor in entries:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor.detach().cpu().contiguous()
    return unique


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
