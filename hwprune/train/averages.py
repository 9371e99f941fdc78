"""Averages of weights (EMA, SWA), whatever they are wrapped in."""

from __future__ import annotations

from torch import Tensor, nn

from hwprune.errors import InputError
from hwprune.groups.shards import is_sharded
from hwprune.train.finite import check_finite

#: Attributes under which wrappers hold a network: what ``torch.compile`` gives, and all others.
_INNER = ("_orig_mod", "module")


def averaged_state(average: nn.Module, model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the network that an average holds.

    Args:
        average: A network like ``model``, or what holds one as its ``module``, as
            ``torch.optim.swa_utils.AveragedModel``, timm's ``ModelEmaV3`` and ``DistributedDataParallel`` do,
            compiled or not.
        model: The network that it is an average of.

    Raises:
        InputError: If its parameters and buffers are not those of ``model``, or those are sharded.
        TrainingError: If weights of the average are not finite.

    >>> model = nn.Linear(2, 1)
    >>> sorted(averaged_state(nn.DataParallel(model), model))
    ['bias', 'weight']
    """
    state = model.state_dict()
    if any(is_sharded(tensor) for tensor in state.values()):
        raise InputError(
            "averages of sharded weights cannot be taken over",
            where="Compressor.use_average",
            expected="a network that every process holds whole",
        )
    network: nn.Module = average
    while network.state_dict().keys() != state.keys():
        inner = [getattr(network, name, None) for name in _INNER]
        held = next((each for each in inner if isinstance(each, nn.Module)), None)
        if held is None:
            break
        network = held
    averaged = network.state_dict()
    shapes = [{name: tuple(value.shape) for name, value in each.items()} for each in (state, averaged)]
    if shapes[0] != shapes[1]:
        name = next(name for name in {**state, **averaged} if shapes[0].get(name) != shapes[1].get(name))
        raise InputError(
            "the average is of another network",
            where=f"Compressor.use_average, {name}",
            expected=shapes[0].get(name, "no such parameter or buffer"),
            got=shapes[1].get(name, "none"),
        )
    check_finite(network)
    return averaged
