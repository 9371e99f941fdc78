"""Trained weights of the user's own network, from a file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hwprune.errors import WorkloadError

#: How many names of tensors a message lists.
_LISTED = 3


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a network's ``state_dict`` from a file, every tensor of it.

    Args:
        model: Its parameters and buffers are overwritten.
        path: ``.safetensors``, or what ``torch.save(model.state_dict(), ...)`` wrote, read with
            ``weights_only``: a file that would run code is refused.

    Raises:
        WorkloadError: If the file is missing, damaged or of another network; the network is then as before.
    """
    weights = read_weights(path)
    own = model.state_dict()
    differing = [name for name in weights.keys() & own.keys() if weights[name].shape != own[name].shape]
    problems = {
        "missing": sorted(own.keys() - weights.keys()),
        "unknown": sorted(weights.keys() - own.keys()),
        "of another shape": sorted(differing),
    }
    if any(problems.values()):
        raise WorkloadError(
            "the weights are those of another network",
            where=path,
            expected=f"the {len(own)} tensors of {type(model).__name__}.state_dict()",
            got="; ".join(f"{kind}: {_some(names)}" for kind, names in problems.items() if names),
        )
    model.load_state_dict(weights)


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors in a file of weights, by name.

    Raises:
        WorkloadError: If it is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise WorkloadError("there is no file of weights", where=path)
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WorkloadError(
            "the weights cannot be read",
            where=path,
            expected="a state_dict written by torch.save",
            got="no such file, or one that holds more than tensors and may run code when it is loaded",
            hint="save the weights alone: torch.save(model.state_dict(), FILE)",
        ) from error
    except Exception as error:  # what readers raise on a file of another kind is not documented
        reason = str(error).strip().splitlines()
        raise WorkloadError(
            "the weights cannot be read",
            where=path,
            expected="safetensors, or a state_dict written by torch.save",
            got=reason[0] if reason else type(error).__name__,
        ) from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise WorkloadError(
            "the file holds no state_dict",
            where=path,
            expected="a mapping of names to tensors, as model.state_dict() gives",
            got=_contents(content),
            hint="save the weights alone: torch.save(model.state_dict(), FILE)",
        )
    return content


def _contents(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a mapping with {_some([str(key) for key in content])}"
    return type(content).__name__


def _some(names: list[str]) -> str:
    listed = ", ".join(names[:_LISTED])
    return f"{listed} and {len(names) - _LISTED} more" if len(names) > _LISTED else listed
