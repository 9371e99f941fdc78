"""One batch over several processes: each takes its share, and sums over the batch go over all processes.

The gradients, the batch norms' statistics and the loss are those of the whole batch, so that the number of
processes changes nothing but the rounding. Everything here does nothing in a single process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hwprune.errors import InputError
from hwprune.processes import alike, process_count

BatchNorm = nn.modules.batchnorm._BatchNorm


def share_of(batch: Tensor) -> Tensor:
    """The rows of a batch that this process works on, in the order of the processes.

    Raises:
        InputError: If there are fewer rows than processes.
    """
    count = process_count()
    if count == 1:
        return batch
    if len(batch) < count:
        raise alike(
            InputError(
                "a batch is too small to be shared",
                where="--batch-size",
                expected=f"at least {count} images, one for each process",
                got=len(batch),
            )
        )
    return torch.tensor_split(batch, count)[dist.get_rank()]


def total(value: float) -> float:
    """The sum of the processes' values."""
    if process_count() == 1:
        return value
    summed = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(summed)
    return float(summed)


def add_up_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Adds up the processes' gradients in place, in one message."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if process_count() == 1 or not gradients:
        return
    summed = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(summed)
    pieces = torch.split(summed, [gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))


@contextmanager
def shared_statistics(model: nn.Module) -> Iterator[None]:
    """Within the context batch norms in training mode take the statistics of all processes' rows.

    Torch's own layer for this runs on GPUs only.

    Args:
        model: The network; its modules are as before afterwards.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and module.training]
    if process_count() == 1:
        norms = []
    for norm in norms:
        norm.forward = partial(_normalise, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalise(norm: BatchNorm, inputs: Tensor) -> Tensor:
    """Batch normalisation as in training (Ioffe and Szegedy 2015), over the rows of all processes."""
    dims = [dim for dim in range(inputs.ndim) if dim != 1]
    shape = [1, -1] + [1] * (inputs.ndim - 2)
    count = total(inputs.numel() / inputs.shape[1])
    mean = _sum_over_processes(inputs.sum(dims)) / count
    centred = inputs - mean.view(shape)
    variance = _sum_over_processes(centred.square().sum(dims)) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        assert norm.num_batches_tracked is not None  # torch makes the three together
        norm.num_batches_tracked += 1
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        with torch.no_grad():
            norm.running_mean.lerp_(mean, share)
            norm.running_var.lerp_(variance * (count / max(count - 1, 1)), share)
    outputs = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        outputs = outputs * norm.weight.view(shape) + norm.bias.view(shape)
    return outputs


class _SumOverProcesses(torch.autograd.Function):
    """The sum over the processes; so is its gradient, because each of them goes on with the sum."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed


def _sum_over_processes(values: Tensor) -> Tensor:
    summed: Tensor = _SumOverProcesses.apply(values)  # type: ignore[no-untyped-call]
    return summed
