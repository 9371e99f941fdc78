"""Checkpoints: one safetensors file, no pickle, replaced atomically.

Tensors are stored as such; everything around them is a JSON skeleton in the file's metadata. The file is
whole or it is not there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hwprune.errors import ArtifactError
from hwprune.files import replacing

SCHEMA = 1
_METADATA_KEY = "hwprune"


def save_checkpoint(path: Path, state: Any) -> None:
    """Writes nested dicts, lists, tensors, numbers, strings and ``None``.

    Args:
        path: Replaced atomically.
        state: What to keep.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _encode(state, tensors)
    metadata = {_METADATA_KEY: json.dumps({"schema": SCHEMA, "state": skeleton})}
    with replacing(path) as temporary:
        save_file(tensors, str(temporary), metadata=metadata)


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
        return _decode(content["state"], tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ArtifactError(
            "the checkpoint is damaged",
            where=path,
            got=f"{type(error).__name__}: {error}",
            hint="start again without --resume",
        ) from error


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
