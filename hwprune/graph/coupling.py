"""Finds the channel axes of a network by following labels through its recorded operators.

Every position along every dimension of every parameter starts with a label of its own. Operators carry
labels along, tie them (a residual sum makes two channels one) or pin them (a softmax over channels
sees them all). What is tied at the end is a channel; channels with the same producers form an axis. No
module type is ever looked at, so a user's own modules need nothing; an operator nobody wrote a rule for
pins what reaches it and is named in the reason.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from torch import nn
from torch.utils._pytree import tree_map

from hwprune.graph import (  # noqa: F401  (imported for the rules they register)
    rules_elementwise,
    rules_matrix,
    rules_norm,
    rules_reduce,
    rules_select,
    rules_shape,
    rules_spatial,
)
from hwprune.graph.axes import ChannelAxis, Role, TensorSlice
from hwprune.graph.flow import Flow, Labelled, Rule, Source, bind, find_rule
from hwprune.graph.labels import AtomClasses, Dims, Segment
from hwprune.graph.record import Call, ExampleInputs, Recording, Value, record
from hwprune.graph.steering import refuse_steered

logger = logging.getLogger(__name__)


def find_axes(model: nn.Module, example_inputs: ExampleInputs) -> tuple[ChannelAxis, ...]:
    """Finds every channel axis of a network, those that must keep their width included.

    Args:
        model: Any module; it is run once in evaluation mode and left as it was.
        example_inputs: A tensor, a sequence of arguments or a mapping of keyword arguments.

    Returns:
        The axes in the order in which they are first produced.

    Raises:
        GraphError: If the forward pass fails, or depends on the values of its inputs.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    >>> for axis in find_axes(net, torch.zeros(1, 3, 8, 8)):
    ...     print(axis.name, axis.width, axis.pinned, [part.tensor for part in axis.consumers])
    0 8 None ['1.running_mean', '1.running_var', '3.weight']
    3 4 network output []
    """
    recording = record(model, example_inputs)
    refuse_steered(model, recording)
    flow = Flow(name for name, _parameter in model.named_parameters())
    recurrent = {
        name: f"recurrent layer {name or 'at the top'} ({type(module).__name__}) is kept whole"
        for name, module in model.named_modules()
        if isinstance(module, nn.RNNBase)
    }
    for call in recording.calls:
        _follow(flow, call, recurrent.get(call.module))
    _pin_outputs(flow, recording)
    return _build_axes(flow.store.segments, flow.store.classes())


def _follow(flow: Flow, call: Call, refused: str | None) -> None:
    """Carries the labels through one operator."""
    flow.enter(call.module)
    inputs = [flow.labelled(value) for value in call.inputs]
    results: Sequence[Dims] | None = None
    if refused is None:
        refused = f"operator {call.op.removesuffix('.default')} has no rule"
        apply = find_rule(call)
        if apply is not None:
            refused = f"operator {call.op} is used in a form that its rule does not know"
            results = _apply(flow, call, apply)
    if results is None:
        for tensor in inputs:
            flow.pin_all(tensor.dims, refused)
    source = _common_source(inputs)
    for index, value in enumerate(call.outputs):
        nothing: Dims = (None,) * len(value.shape)
        flow.give(value, results[index] if results and index < len(results) else nothing, source)


def _apply(flow: Flow, call: Call, apply: Rule) -> Sequence[Dims] | None:
    """The labels of the outputs, ``None`` where the rule does not understand the call.

    An operator may be called in a form that its rule was not written for. What the rule has said by then
    stays: it can only keep more channels than need be.
    """
    arguments = tree_map(lambda leaf: flow.labelled(leaf) if isinstance(leaf, Value) else leaf, bind(call))
    try:
        results = apply(flow, arguments)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        logger.debug("%s in %s: %s", call.op, call.module, error)
        return None
    for value, dims in zip(call.outputs, results, strict=False):
        if not _fits(value, dims):
            for each in results:
                flow.pin_all(each, f"operator {call.op} is used in a form that its rule does not know")
            return None
    return results


def _fits(value: Value, dims: Dims) -> bool:
    """Whether labels have the shape of the tensor they are meant for."""
    return len(dims) == len(value.shape) and all(
        labels is None or len(labels) == size for labels, size in zip(dims, value.shape, strict=True)
    )


def _common_source(inputs: list[Labelled]) -> Source:
    """What a result is made of."""
    sources = {tensor.source for tensor in inputs} or {"activation"}
    if "activation" in sources:
        return "activation"
    return "parameter" if "parameter" in sources else "buffer"


def _pin_outputs(flow: Flow, recording: Recording) -> None:
    """Keeps the channels that leave the network, also in containers that cannot be looked into."""
    returned = {value.index for value in recording.outputs}
    read = {value.index for call in recording.calls for value in call.inputs}
    flow.enter("")
    for value in recording.outputs:
        flow.pin_all(flow.labelled(value).dims, "network output")
    for call in recording.calls:
        if not any(value.index in read or value.index in returned for value in call.outputs):
            unread = f"no operator reads what {call.op} returns"
            into = f"{call.op} writes it into a part of another tensor"
            for value in call.outputs:
                flow.pin_all(flow.labelled(value).dims, into if call.in_place else unread)


def _build_axes(segments: list[Segment], classes: AtomClasses) -> tuple[ChannelAxis, ...]:
    """Gathers the channels that have the same producers."""
    producers: dict[int, list[int]] = defaultdict(list)
    first: dict[int, int] = {}
    for index, segment in enumerate(segments):
        producing = classes.producer[segment.atoms]
        if not producing.any():
            continue
        roots = classes.root[segment.atoms]
        found, positions = np.unique(roots[producing], return_index=True)
        for root, position in zip(found.tolist(), positions.tolist(), strict=True):
            producers[root].append(index)
            first.setdefault(root, position)
    members: dict[tuple[tuple[int, ...], bool], list[int]] = defaultdict(list)
    for root, signature in producers.items():
        members[tuple(signature), root in classes.pinned].append(root)
    groups = sorted(
        (signature[0], min(first[root] for root in roots), sorted(roots, key=first.__getitem__))
        for (signature, _pinned), roots in members.items()
    )
    ordered = [roots for _segment, _position, roots in groups]
    slices = _slices(segments, classes, ordered)
    names = _names([segments[segment].tensor for segment, _position, _roots in groups])
    return tuple(
        ChannelAxis(name, len(roots), tuple(slices[index]), _reason(classes, roots))
        for index, (name, roots) in enumerate(zip(names, ordered, strict=True))
    )


def _reason(classes: AtomClasses, roots: list[int]) -> str | None:
    """Why the axis with these classes must stay, if it must."""
    if roots[0] in classes.pinned:
        return classes.pinned[roots[0]]
    return "it has a single channel" if len(roots) == 1 else None


def _slices(
    segments: list[Segment], classes: AtomClasses, groups: list[list[int]]
) -> dict[int, list[TensorSlice]]:
    """Where the channels of every axis lie."""
    axis_of = np.full(len(classes.root), -1, dtype=np.int64)
    channel_of = np.full(len(classes.root), -1, dtype=np.int64)
    for index, members in enumerate(groups):
        axis_of[members] = index
        channel_of[members] = np.arange(len(members))
    slices: dict[int, list[TensorSlice]] = defaultdict(list)
    for segment in segments:
        roots = classes.root[segment.atoms]
        for index in np.unique(axis_of[roots]).tolist():
            if index < 0:
                continue
            here = axis_of[roots] == index
            role: Role = "producer" if classes.producer[segment.atoms][here].any() else "consumer"
            channels = np.where(here, channel_of[roots], -1)
            slices[index].append(TensorSlice(segment.tensor, segment.dim, channels, role))
    return slices


def _names(tensors: list[str]) -> list[str]:
    """A name for each axis: the module that owns its first producer, numbered where that repeats."""
    counts: dict[str, int] = defaultdict(int)
    names = []
    for tensor in tensors:
        base = tensor.rpartition(".")[0] or tensor
        counts[base] += 1
        names.append(base if counts[base] == 1 else f"{base}#{counts[base]}")
    return names
