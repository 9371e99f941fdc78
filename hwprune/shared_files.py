"""What runs hand to each other: networks and what they were made with, and the answers of teachers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hwprune.errors import ArtifactError
from hwprune.train.answers import Answers
from hwprune.train.checkpoint import digest_of, load_checkpoint, save_checkpoint

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


@contextmanager
def shared_answers(path: Path | None, teacher: nn.Module) -> Iterator[Answers | None]:
    """Yields what a teacher has answered other runs; on success what it answered this one is added to it.

    Args:
        path: The file, made where it is missing; one that is damaged, or of another teacher, is replaced.
            ``None`` for nothing to share.
        teacher: Not trained meanwhile.

    Raises:
        OSError: If there is no room.
    """
    if path is None:
        yield None
        return
    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in teacher.state_dict().items()
        if isinstance(value, Tensor)
    }
    made_with = {"teacher": digest_of("", weights)}
    try:
        answers = Answers(load_shared(path, made_with)["answers"])
    except ArtifactError:  # or missing: the teacher is asked, which only takes longer
        answers = Answers()
    yield answers
    if answers.added:
        save_shared(path, {"answers": answers.known}, made_with)
