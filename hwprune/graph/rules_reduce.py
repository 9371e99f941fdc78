"""Rules for operators that look along whole dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from hwprune.graph.flow import Arguments, Flow, Labelled, aten, rule
from hwprune.graph.labels import Dims, Labels


def _reduced_dims(arguments: Arguments, rank: int) -> set[int]:
    """The dimensions an operator reduces; all where it names none."""
    given = arguments.get("dim")
    if given is None or given == []:
        return set(range(rank))
    return {dim % rank for dim in (given if isinstance(given, list | tuple) else [given]) if rank}


def _reduce(flow: Flow, arguments: Arguments, *, why: str | None) -> Sequence[Dims]:
    """Reduces dimensions; their channels stay because of ``why``, unless zeros do not matter."""
    tensor: Labelled = arguments["self"]
    reduced = _reduced_dims(arguments, tensor.rank)
    keep_dim = bool(arguments.get("keepdim", False))
    dims: list[Labels] = []
    for dim, labels in enumerate(tensor.dims):
        if dim not in reduced:
            dims.append(labels)
            continue
        if why is not None:
            flow.pin(labels, why)
        if keep_dim:
            dims.append(None)
    return [tuple(dims)] * 2


@rule("aten.sum", "aten.nansum", "aten.count_nonzero")
def total(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """A sum, to which a channel of zeros adds nothing."""
    return _reduce(flow, arguments, why=None)


@rule(
    *aten(
        """
        all amax amin any argmax argmin linalg_vector_norm logsumexp max mean median min norm prod std
        std_mean var var_mean
        """
    ),
)
def statistic(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """A statistic that a channel of zeros changes."""
    return _reduce(flow, arguments, why="a statistic is taken over channels")


@rule(
    *aten(
        """
        _log_softmax _softmax _safe_softmax cumprod cumsum logcumsumexp sort log_softmax softmax
        """
    ),
)
def normalise_along(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """A result of the same shape in which every position along one dimension depends on all."""
    tensor: Labelled = arguments["self"]
    if tensor.rank:
        flow.pin(tensor.dims[arguments["dim"] % tensor.rank], "a softmax or a running sum sees all channels")
    return [tensor.dims] * 2


@rule("aten.topk", "aten.kthvalue")
def choose_largest(flow: Flow, arguments: Arguments) -> Sequence[Dims]:
    """The largest along one dimension."""
    tensor: Labelled = arguments["self"]
    if not tensor.rank:
        return []
    dim = arguments["dim"] % tensor.rank
    flow.pin(tensor.dims[dim], "the largest channels are chosen")
    return [(*tensor.dims[:dim], None, *tensor.dims[dim + 1 :])] * 2
