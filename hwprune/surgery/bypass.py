"""Takes residual branches out of a network, and tries every one before training.

Each branch is taken out alone of a network with random weights: what the network computes then must be what
it computes with the weights of the branch at zero, and it must run no operator of the branch any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hwprune.errors import GraphError
from hwprune.graph.branches import Branch, without_branches
from hwprune.graph.record import ExampleInputs, Recording, call_observed, evaluation_mode
from hwprune.graph.trace import operators_of, trace_operators
from hwprune.graph.twin import copy_of
from hwprune.operators import Operator
from hwprune.surgery.outputs import UNDECIDED, compare, outputs_of
from hwprune.surgery.random_copies import randomised
from hwprune.surgery.stand_in import Absence, Dimension, take_out


@dataclass(frozen=True, slots=True, eq=False)
class Bypass:
    """A branch, and what stands in its place.

    Attributes:
        branch: The branch; pinned where its trial failed.
        absences: Dotted name of every layer that leaves, and what stands for it.
        form: Which of the ways to stand for it that is.
    """

    branch: Branch
    absences: Mapping[str, Absence]
    form: int = 0


def remove(model: nn.Module, bypasses: Sequence[Bypass]) -> nn.Module:
    """Returns a copy of ``model`` without these branches; the model itself is not touched.

    Args:
        model: The network that the branches were found in.
        bypasses: Those that leave.
    """
    absences = {name: absence for bypass in bypasses for name, absence in bypass.absences.items()}
    # What leaves need not be copied.
    slim = copy_of(model, {id(model.get_submodule(name)): nn.Identity() for name in absences})
    take_out(slim, absences)
    return slim


def absences_in(
    model: nn.Module, recording: Recording, bypasses: Sequence[Bypass], example_inputs: ExampleInputs
) -> dict[str, Absence]:
    """What stands for branches in a network that has become narrower, and is still to lose them.

    Args:
        model: The narrower network, with the layers of the branches.
        recording: What the branches were found in.
        bypasses: Those that leave.
        example_inputs: What it is called with.

    Returns:
        Dotted name of every layer that leaves, and what stands for it.
    """
    names = [name for bypass in bypasses for name in bypass.branch.modules]
    with evaluation_mode(model):
        seen = _observe(model, names, example_inputs)
    found: dict[str, Absence] = {}
    for bypass in bypasses:
        first, last = (seen[bypass.branch.modules[place]][0] for place in (0, -1))
        # What a branch reads and what it is added to need not be equally wide any more.
        alike = last.outputs == (first.source,)
        form = bypass.form if bypass.form or alike else 1
        found |= _forms(recording, bypass.branch, seen)[form]
    return found


def prove_branches(
    model: nn.Module,
    recording: Recording,
    branches: Sequence[Branch],
    example_inputs: ExampleInputs,
    *,
    seed: int = 0,
) -> tuple[Bypass, ...]:
    """Takes every branch out once, on a randomised copy, and pins those that do not come out equal.

    Args:
        model: The network; not touched.
        recording: What the branches were found in.
        branches: All branches.
        example_inputs: What it is called with.
        seed: Seed of the random parameters.
    """
    dense = randomised(model, torch.Generator().manual_seed(seed)).eval()
    seen = _observe(dense, [name for branch in branches for name in branch.modules], example_inputs)
    proven = []
    for branch in branches:
        if branch.pinned is not None:
            proven.append(Bypass(branch, {}))
            continue
        expected = operators_of(without_branches(recording, [branch]))
        proven.append(_proven(dense, branch, _forms(recording, branch, seen), expected, example_inputs))
    return tuple(proven)


def _proven(
    dense: nn.Module,
    branch: Branch,
    forms: Sequence[Mapping[str, Absence]],
    operators: Sequence[Operator],
    example_inputs: ExampleInputs,
) -> Bypass:
    """The branch with the first form of stand-ins that passes the trial, or pinned."""
    reason = "its layers return what nothing can stand for"
    with zero_weights(dense, branch):
        expected = outputs_of(dense, example_inputs)
    for form, absences in enumerate(forms):
        failure = _trial(dense, absences, operators, expected, example_inputs)
        if failure is None:
            return Bypass(branch, absences, form)
        reason = failure
    return Bypass(replace(branch, pinned=reason), {})


def _trial(
    dense: nn.Module,
    absences: Mapping[str, Absence],
    operators: Sequence[Operator],
    expected: Sequence[Tensor],
    example_inputs: ExampleInputs,
) -> str | None:
    """Why a network with these stand-ins is not the one wanted; ``None`` where it is."""
    layers = {name: dense.get_submodule(name) for name in absences}
    take_out(dense, absences)
    try:
        left = trace_operators(dense, example_inputs)
        actual = outputs_of(dense, example_inputs)
    except GraphError as error:
        return f"the network cannot do without it: {error.got or error.what}"
    except (
        Exception
    ) as error:  # the user's own code, which may take another way here than when it is recorded
        return f"the network cannot do without it: {type(error).__name__}: {error}"
    finally:
        for name, layer in layers.items():
            dense.set_submodule(name, layer)
    difference = compare(expected, actual)
    if difference.relative > UNDECIDED:
        return f"a branch of zeros still acts on the network (outputs differ by {difference.absolute:.2g})"
    surplus = _counted(left) - _counted(operators)
    if surplus:
        kinds = ", ".join(dict.fromkeys(operator.kind for operator in surplus))
        return f"the network without it still runs operators of it: {kinds}"
    return None


def _counted(operators: Sequence[Operator]) -> Counter[Operator]:
    return Counter(replace(operator, name="") for operator in operators)


@contextmanager
def zero_weights(model: nn.Module, branch: Branch) -> Iterator[None]:
    """Within the context the weights of the branch are zero; afterwards as before."""
    parameters = [model.get_parameter(name).detach() for name in branch.parameters]
    saved = [parameter.clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.zero_()
        yield
    finally:
        for parameter, values in zip(parameters, saved, strict=True):
            parameter.copy_(values)


@dataclass(frozen=True, slots=True)
class _Seen:
    """One run of a layer: shape of its first tensor (empty: of none), and shapes of what it returned."""

    source: tuple[int, ...]
    outputs: tuple[tuple[int, ...] | None, ...] | None
    single: bool


def _observe(model: nn.Module, names: Sequence[str], example_inputs: ExampleInputs) -> dict[str, list[_Seen]]:
    """What the named layers are given and return."""
    seen: dict[str, list[_Seen]] = {name: [] for name in names}
    handles = []
    for name in seen:

        def note(_module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            given = [tuple(leaf.shape) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            seen[name].append(_seen(given[0] if given else (), output))

        handles.append(model.get_submodule(name).register_forward_hook(note, with_kwargs=True))
    call_observed(model, example_inputs, handles)
    return seen


def _seen(source: tuple[int, ...], output: Any) -> _Seen:
    single = isinstance(output, Tensor)
    parts = (output,) if single else output
    if type(parts) is not tuple or not all(part is None or isinstance(part, Tensor) for part in parts):
        return _Seen(source, None, single)
    return _Seen(source, tuple(None if part is None else tuple(part.shape) for part in parts), single)


def _forms(
    recording: Recording, branch: Branch, seen: Mapping[str, Sequence[_Seen]]
) -> list[dict[str, Absence]]:
    """Ways to stand for a branch, the one that follows its input in everything first."""
    first = {name: seen[name][0] for name in branch.modules}
    if any(each.outputs is None for each in first.values()):
        return []
    later = {name for name in branch.modules if not _reads_from_outside(recording, branch, name)}
    alike = {name: _absence(each, passes=name in later, alike=True) for name, each in first.items()}
    sized = {
        name: _absence(each, passes=name in later and each.outputs == (each.source,), alike=False)
        for name, each in first.items()
    }
    # Where a constant arises on the way (a sigmoid of zeros), every layer makes zeros of its own.
    anew = {name: _absence(each, passes=False, alike=False) for name, each in first.items()}
    return [alike, sized, anew]


def _reads_from_outside(recording: Recording, branch: Branch, module: str) -> bool:
    """Whether a layer reads an activation that the branch does not compute."""
    made = {value.index for index in branch.calls for value in recording.calls[index].outputs}
    calls = [recording.calls[index] for index in branch.calls]
    inside = [call for call in calls if f"{call.module}.".startswith(f"{module}.")]
    return any(value.name is None and value.index not in made for call in inside for value in call.inputs)


def _absence(seen: _Seen, *, passes: bool, alike: bool) -> Absence:
    assert seen.outputs is not None  # layers that return something else have no stand-in
    return Absence(
        passes=passes,
        outputs=tuple(
            None if shape is None else _dimensions(seen.source, seen.source if alike else shape)
            for shape in seen.outputs
        ),
        single=seen.single,
    )


def _dimensions(source: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Dimension, ...]:
    return tuple(_dimension(source, place, size) for place, size in enumerate(shape))


def _dimension(source: tuple[int, ...], place: int, size: int) -> Dimension:
    """How one dimension follows that of the input: equal, by a stride along the map, or not at all."""
    before = source[place] if place < len(source) else 0
    if before == size:
        return Dimension(size=size, of=place)
    stride = round(before / size) if size else 0
    if place >= 2 and len(source) >= 4 and stride >= 2 and -(-before // stride) == size:
        return Dimension(size=size, of=place, per=stride)
    return Dimension(size=size)
