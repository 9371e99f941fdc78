"""Slim networks on disk: structure as JSON, weights as safetensors, no pickle.

``structure.json`` says which positions of which tensors were kept and which layers were taken out; loading
does the same to a fresh instance of the user's own class and fills in the weights. Everything is checked
before anything is changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hwprune.errors import ArtifactError, GraphError
from hwprune.files import replacing, sha256_of, told_as_os_error, write_text
from hwprune.graph.axes import BoolArray, ChannelAxis, IntArray, kept_positions
from hwprune.graph.record import check_initialised
from hwprune.surgery.fold import give_biases, new_bias, takes_bias
from hwprune.surgery.forms import Form, reshape, shape_in_form
from hwprune.surgery.rebuild import narrow
from hwprune.surgery.stand_in import absent_layers, take_out
from hwprune.surgery.structure import (
    SCHEMA,
    STRUCTURE_FILE,
    WEIGHTS_FILE,
    Cut,
    Reshaped,
    Structure,
    check_absent,
    check_file,
    checked_forms,
    checked_positions,
    cut_shape,
    is_absent,
    read_structure,
    sealed,
    shortened,
)

#: What the names and shapes at the head of a weights file may take, in bytes per tensor and for the whole.
HEADER_BYTES_PER_TENSOR, HEADER_BYTES = 1024, 2**16
#: Where the weights file notes the hash of the structure.
SEAL = "structure_sha256"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def save_slim(
    folder: Path,
    slim: nn.Module,
    axes: Sequence[ChannelAxis],
    kept: Mapping[str, BoolArray],
    versions: Mapping[str, str],
    *,
    forms: Sequence[Form] = (),
    biases: Collection[str] = (),
) -> None:
    """Writes ``structure.json`` and ``model.safetensors``, each atomically.

    Args:
        folder: Created where it is missing.
        slim: The narrowed network.
        axes: The axes of the dense network.
        kept: Axis name to the mask of kept channels.
        versions: Package versions to note.
        forms: Convolutions that are in another form, after the cuts.
        biases: Dotted names of layers that may have got a bias which the dense network does not have.

    Raises:
        ArtifactError: If the folder is a file, or the network keeps state that is no tensor.
        OSError: If there is no room.
    """
    state = _unique_tensors(slim)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ArtifactError(
            "the slim folder is a file", where=folder, expected="a folder or nothing"
        ) from error
    sizes = {(part.tensor, part.dim): part.channels.size for axis in axes for part in axis.slices}
    absent = absent_layers(slim)
    cuts = {
        place: positions
        for place, positions in kept_positions(axes, kept).items()
        if _outside([(place[0], positions)], absent)
    }
    structure = Structure(
        schema=SCHEMA,
        versions=dict(versions),
        model_class=f"{type(slim).__module__}.{type(slim).__qualname__}",
        cuts=tuple(
            Cut(tensor=tensor, dim=dim, size=sizes[tensor, dim], kept=tuple(positions.tolist()))
            for (tensor, dim), positions in sorted(cuts.items())
        ),
        absent=absent,
        reshaped=tuple(
            Reshaped(module=form.module, form=form.kind, positions=form.positions) for form in forms
        ),
        biases=tuple(sorted(biases)),
        shapes={name: tuple(tensor.shape) for name, tensor in state.items()},
        weights_sha256="0" * 64,
    )
    with replacing(folder / WEIGHTS_FILE) as temporary:
        with told_as_os_error("the slim network", folder / WEIGHTS_FILE):
            save_file(state, str(temporary), {SEAL: sealed(structure)})
        digest = sha256_of(temporary)
    structure = structure.model_copy(update={"weights_sha256": digest})
    write_text(folder / STRUCTURE_FILE, structure.model_dump_json(by_alias=True, indent=1) + "\n")


def load_slim(folder: Path, model: nn.Module) -> nn.Module:
    """Narrows ``model`` as the artefact says, changes the form of convolutions and fills in the weights.

    Args:
        folder: What :func:`save_slim` wrote.
        model: A fresh, unpruned instance; narrowed in place and returned, trainable. It is not touched
            where anything is wrong.

    Raises:
        ArtifactError: If the folder is incomplete, tampered with, of another version or of another
            network.
    """
    structure = read_structure(folder)
    try:
        check_initialised(model)
    except GraphError as error:
        raise ArtifactError(
            "the model that is to be filled in has layers without weights yet",
            where=error.where,
            expected=error.expected,
            hint="call it with example inputs before it is passed to load",
        ) from error
    check_absent(folder, structure, {name for name, _module in model.named_modules()})
    tensors = _outside([*model.named_parameters(), *model.named_buffers()], structure.absent)
    positions = checked_positions(folder, structure, {name: tuple(each.shape) for name, each in tensors})
    own = _unique_tensors(model, structure.absent)
    own |= _new_biases(folder, structure, model, positions)
    expected = {name: cut_shape(name, tuple(tensor.shape), positions) for name, tensor in own.items()}
    forms = checked_forms(folder, structure, model, expected)
    for form in forms:
        weight = f"{form.module}.weight"
        expected[weight] = shape_in_form(form.kind, expected[weight], np.array(form.positions))
    _check_shapes(folder / STRUCTURE_FILE, expected, structure.shapes)
    state = _read_weights(folder, structure, own)
    _check_shapes(folder / WEIGHTS_FILE, expected, {name: tuple(t.shape) for name, t in state.items()})
    _check_types(folder / WEIGHTS_FILE, own, state)
    try:
        narrow(model, positions)
    except GraphError as error:
        raise ArtifactError(
            "the structure cuts a layer that is never cut",
            where=f"{folder / STRUCTURE_FILE}: {error.where}",
            got=error.got,
        ) from error
    take_out(model, structure.absent)
    give_biases(model, structure.biases)
    reshape(model, forms)
    model.load_state_dict(state, strict=False)
    return model


def _new_biases(
    folder: Path, structure: Structure, model: nn.Module, positions: Mapping[tuple[str, int], IntArray]
) -> dict[str, Tensor]:
    """The biases that layers of the fresh model are given, as wide as the layers are when they are cut."""
    layers = dict(model.named_modules())
    found: dict[str, Tensor] = {}
    for name in structure.biases:
        if name not in layers or is_absent(structure, name) or not takes_bias(layers[name]):
            raise ArtifactError(
                "the artefact is from another network",
                where=f"{folder / STRUCTURE_FILE}: {shortened(name)}",
                expected="a linear layer or a convolution",
                got=type(layers[name]).__name__ if name in layers else "no such layer",
                hint="pass a fresh, unpruned instance of the class that was pruned",
            )
        if layers[name].bias is None:
            rows = positions.get((f"{name}.weight", 0))
            bias = new_bias(layers[name])
            found[f"{name}.bias"] = bias if rows is None else bias[: rows.size]
    return found


def _read_weights(folder: Path, structure: Structure, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the weights file, which cannot be larger than those of the fresh model."""
    path = folder / WEIGHTS_FILE
    check_file(path, "the weights are")
    most = HEADER_BYTES + sum(HEADER_BYTES_PER_TENSOR + 8 * tensor.numel() for tensor in own.values())
    if path.stat().st_size > most:
        raise ArtifactError(
            "the weights are larger than the unpruned network",
            where=path,
            expected=f"at most {most} bytes",
            got=path.stat().st_size,
        )
    digest = sha256_of(path)
    if digest != structure.weights_sha256:
        raise ArtifactError(
            "the weights are not those that the structure was written with",
            where=path,
            expected=f"SHA-256 {structure.weights_sha256[:12]}...",
            got=f"{digest[:12]}...",
            hint="copy the folder again, both files together",
        )
    try:
        with safe_open(str(path), "pt") as file:
            noted = (file.metadata() or {}).get(SEAL)
        _check_seal(folder / STRUCTURE_FILE, structure, noted)
        return load_file(str(path))
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise ArtifactError("the weights cannot be read", where=path, got=shortened(str(error))) from error


def _check_seal(path: Path, structure: Structure, noted: str | None) -> None:
    """The structure is the one noted in the weights; the first artefacts have no note, and cuts alone."""
    if noted is None and not (structure.absent or structure.reshaped or structure.biases):
        return
    if noted != (found := sealed(structure)):
        raise ArtifactError(
            "the structure is not the one that the weights were written with",
            where=path,
            expected="no layer absent, reshaped or with another bias, as the weights note no structure"
            if noted is None
            else f"SHA-256 {shortened(noted[:12])}...",
            got=f"{found[:12]}...",
            hint="copy the folder again, both files together",
        )


def _check_shapes(
    path: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ArtifactError(
                "the weights do not fit the network",
                where=f"{path}: {shortened(name)}",
                expected=expected.get(name, "no such tensor"),
                got=found.get(name, "nothing"),
            )


def _check_types(path: Path, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """A floating-point number may have another precision; whatever else differs is another network."""
    for name, tensor in own.items():
        found = state[name].dtype
        if found != tensor.dtype and not (found in _FLOATS and tensor.dtype in _FLOATS):
            raise ArtifactError(
                "the weights are of another type than the network's",
                where=f"{path}: {shortened(name)}",
                expected=tensor.dtype,
                got=found,
            )


def check_state(model: nn.Module) -> None:
    """Raises where a network keeps state that no artefact holds.

    Raises:
        ArtifactError: If an entry of its state is no tensor, as ``get_extra_state`` may return.
    """
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise ArtifactError(
                "the network keeps state that is no tensor",
                where=shortened(name),
                expected="a tensor: an artefact holds nothing that would have to be unpickled",
                got=type(value).__name__,
                hint="return a tensor from get_extra_state, or make the state a buffer",
            )


def _unique_tensors(model: nn.Module, absent: Collection[str] = ()) -> dict[str, Tensor]:
    """The state of a model, tensors that go by several names once, those of some layers left out.

    Tensors that show the same memory in different ways get memory of their own.
    """
    check_state(model)
    unique: dict[str, Tensor] = {}
    seen: set[int] = set()
    memory: set[int] = set()
    entries: list[tuple[str, Any]] = list(model.state_dict(keep_vars=True).items())
    for name, tensor in _outside(entries, absent):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            own = tensor.detach().cpu().contiguous()
            place = own.untyped_storage().data_ptr()
            unique[name] = own.clone() if place in memory else own
            memory.add(place)
    return unique


def _outside(entries: Sequence[tuple[str, Any]], layers: Collection[str]) -> list[tuple[str, Any]]:
    """The entries whose dotted names do not lead into one of the layers."""
    inside = tuple(f"{layer}." for layer in layers)
    return [(name, value) for name, value in entries if not name.startswith(inside)]
