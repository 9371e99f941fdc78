"""Checkpoints: one safetensors file, no pickle, replaced atomically.

Tensors are stored as such; everything around them is a JSON skeleton in the file's metadata, with a hash of
both: a file that was changed in a single bit is refused. The file is whole or it is not there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hwprune.errors import ArtifactError
from hwprune.files import replacing, told_as_os_error

SCHEMA = 2
_METADATA_KEY = "hwprune"


def save_checkpoint(path: Path, state: Any) -> None:
    """Writes nested dicts, lists, tensors, numbers, strings and ``None``.

    Args:
        path: Replaced atomically.
        state: What to keep.

    Raises:
        OSError: If there is no room, or the folder has gone; the file at ``path`` is then what it was.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_encode(state, tensors))
    content = {"schema": SCHEMA, "state": skeleton, "sha256": digest_of(skeleton, tensors)}
    with replacing(path) as temporary, told_as_os_error("the checkpoint", path):
        save_file(tensors, str(temporary), metadata={_METADATA_KEY: json.dumps(content)})


def load_checkpoint(path: Path) -> Any:
    """Reads what :func:`save_checkpoint` wrote.

    Raises:
        ArtifactError: If the file is missing, damaged or of another schema.
    """
    if not path.is_file():
        raise ArtifactError("the checkpoint is missing", where=path)
    try:
        with safe_open(str(path), framework="pt") as stream:
            content = json.loads((stream.metadata() or {}).get(_METADATA_KEY, "null"))
            if not isinstance(content, dict) or content.get("schema") != SCHEMA:
                raise ArtifactError("not a checkpoint of this version", where=path)
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        if digest_of(content["state"], tensors) != content["sha256"]:
            raise ValueError("its content is not what was written")
        return _decode(json.loads(content["state"]), tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ArtifactError(
            "the checkpoint is damaged",
            where=path,
            got=f"{type(error).__name__}: {error}",
            hint="start again without --resume",
        ) from error


def digest_of(skeleton: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of everything that a checkpoint holds.

    Args:
        skeleton: What is not a tensor, as text.
        tensors: Contiguous, on the CPU.
    """
    digest = hashlib.sha256(skeleton.encode())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = f"t{len(tensors)}"
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(value, dict):
        return {"dict": [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_encode(item, tensors) for item in value]}
    return value


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "list":
        return [_decode(item, tensors) for item in content]
    return {_decode(k, tensors): _decode(v, tensors) for k, v in content}
