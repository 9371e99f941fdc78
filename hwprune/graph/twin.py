"""Copies of networks, also of those that keep what they computed last."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Module = TypeVar("Module", bound=nn.Module)


def copy_of(model: Module, instead: dict[int, nn.Module] | None = None) -> Module:
    """A copy with parameters of its own.

    ``copy.deepcopy`` refuses tensors that are part of a graph. A network holds such ones where its forward
    pass keeps an activation (``self.features = ...``), or a hook a weight that follows from parameters, as
    ``torch.nn.utils.spectral_norm`` does. They are copied without their graph.

    Args:
        model: The network; not touched.
        instead: From the ``id`` of a submodule to what stands in its place in the copy.
    """
    memo: dict[int, object] = dict(instead or {})
    for module in model.modules():
        for value in tree_leaves([kept for name, kept in vars(module).items() if name not in _CHILDREN]):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


#: What modules hold that is visited by itself, or never part of a graph.
_CHILDREN = frozenset({"_modules", "_parameters"})
