"""The tensors in what a network returns, whatever it returns them in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

#: Leaves that hold no tensors and are not looked into.
_PLAIN = (str, bytes, int, float, complex, type(None), type, nn.Module)


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor, in order: in nested containers, their subclasses, and in the attributes of objects.

    >>> import torch
    >>> class Answer(dict):
    ...     pass
    >>> [len(tensor) for tensor in tensors_in([torch.zeros(2), Answer(hidden=torch.zeros(3))])]
    [2, 3]
    """
    return list(_walk(value, set()))


def _walk(value: Any, seen: set[int]) -> Iterator[Tensor]:
    for leaf in tree_flatten(value)[0]:
        if isinstance(leaf, Tensor):
            yield leaf
        elif not isinstance(leaf, _PLAIN) and id(leaf) not in seen:
            seen.add(id(leaf))
            for part in _parts(leaf):
                yield from _walk(part, seen)


def _parts(leaf: Any) -> Iterable[Any]:
    """What an object holds that PyTorch does not know as a container."""
    if isinstance(leaf, Mapping):
        return list(leaf.values())
    if isinstance(leaf, list | tuple | set | frozenset):
        return list(leaf)
    names = [field.name for field in dataclasses.fields(leaf)] if dataclasses.is_dataclass(leaf) else []
    slots = [getattr(kind, "__slots__", ()) for kind in type(leaf).__mro__]
    names += [name for each in slots for name in ([each] if isinstance(each, str) else each)]
    names += getattr(leaf, "__dict__", {})
    return [getattr(leaf, name, None) for name in dict.fromkeys(names)]
