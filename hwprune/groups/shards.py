"""Parameters that several processes share among them: FSDP2 leaves each process some rows of every tensor.

Groups need three things of a sharded tensor: the rows at hand, where they belong in the whole, and sums over
the processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import Tensor

from hwprune.errors import InputError
from hwprune.processes import distributed

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows (along the first dimension) of one tensor that this process holds.

    Attributes:
        start: The first of them.
        count: How many.
        group: The processes that hold the others; ``None`` where this one holds all.
    """

    start: int
    count: int
    group: dist.ProcessGroup | None


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes."""
    return _shared(tensor) is not None


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, detached, in the same memory."""
    shared = _shared(tensor)
    return tensor.detach() if shared is None else shared.to_local().detach()


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the rows of all processes, in each of them; every process must ask for it."""
    shared = _shared(tensor)
    return tensor if shared is None else shared.full_tensor().detach()


def rows_of(tensor: Tensor, name: str) -> Rows:
    """Which rows of a tensor this process holds.

    Args:
        tensor: A parameter, sharded or not.
        name: Its dotted name, for the message.

    Raises:
        InputError: If it is spread in another way than by rows over one dimension of the mesh.
    """
    shared = _shared(tensor)
    if shared is None:
        return Rows(0, tensor.shape[0], None)
    from torch.distributed.tensor import Replicate, Shard

    placements = shared.placements
    sharded = [index for index, placement in enumerate(placements) if not isinstance(placement, Replicate)]
    if not sharded:
        return Rows(0, tensor.shape[0], None)
    if len(sharded) > 1 or placements[sharded[0]] != Shard(0):
        raise InputError(
            "the parameter is spread over the processes in a way that pruning does not know",
            where=name,
            expected="whole, or sharded along its first dimension over one dimension of the mesh, as "
            "fully_shard does",
            got=placements,
        )
    mesh, dim = shared.device_mesh, sharded[0]
    # As torch.chunk deals them out: as many to each process, what is left to the last ones.
    chunk = -(-tensor.shape[0] // mesh.size(dim))
    start = min(mesh.get_local_rank(dim) * chunk, tensor.shape[0])
    return Rows(start, min(chunk, tensor.shape[0] - start), mesh.get_group(dim))


def common_group(rows: Iterable[Rows]) -> dist.ProcessGroup | None:
    """The processes that share the tensors; ``None`` where none is shared.

    Raises:
        InputError: If tensors are spread over different processes.
    """
    groups = [item.group for item in rows if item.group is not None]
    if any(group is not groups[0] for group in groups):
        raise InputError(
            "the parameters are spread over different meshes",
            expected="one mesh for all parameters that can be pruned",
        )
    return groups[0] if groups else None


def is_first_of(group: dist.ProcessGroup | None) -> bool:
    """Whether this process counts what every process of the group holds whole."""
    return group is None or dist.get_rank(group) == 0


def sum_over(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Adds up the processes' values in place; returns them."""
    if group is not None:
        dist.all_reduce(values, group=group)
    return values


def _shared(tensor: Tensor) -> DTensor | None:
    """The tensor as torch's type for tensors of several processes; ``None`` for any other."""
    if not distributed():
        return None
    from torch.distributed.tensor import DTensor  # takes long to import, and most have one process

    return tensor if isinstance(tensor, DTensor) else None
