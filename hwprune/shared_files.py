"""Networks that runs hand to each other, each with the settings that it was made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwprune.errors import ArtifactError
from hwprune.train.checkpoint import load_checkpoint, save_checkpoint

_MADE_WITH = "made_with"


def save_shared(path: Path, state: Any, made_with: Mapping[str, Any]) -> None:
    """Leaves a network for others.

    Args:
        path: Replaced atomically.
        state: What they take, by name; see :func:`~hwprune.train.checkpoint.save_checkpoint`.
        made_with: The settings that it depends on, as JSON.

    Raises:
        OSError: If there is no room.
    """
    save_checkpoint(path, {**state, _MADE_WITH: json.dumps(made_with, sort_keys=True)})


def load_shared(path: Path, made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What another run has left.

    Args:
        path: The file.
        made_with: The settings that it must have been made with; those of files from before they were noted
            are taken on trust.

    Raises:
        ArtifactError: If it is missing, damaged, or was made with other settings.
    """
    state: dict[str, Any] = dict(load_checkpoint(path))
    wanted = json.dumps(made_with, sort_keys=True)
    before = state.pop(_MADE_WITH, wanted)
    if before != wanted:
        raise ArtifactError(
            "the network was made with other settings", where=path, expected=wanted, got=before
        )
    return state
