"""Residual branches: everything between a tensor and a sum that does without it.

For every sum of two activations of its shape, the operators that run for one operand alone are found by going
through the recording backwards: an operator belongs to the branch if nothing else reads what it computes.
What cannot leave is told with the reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from hwprune.graph.record import Call, ExampleInputs, Recording, Value, record
from hwprune.graph.steering import refuse_steered

SUMS = frozenset({"add", "add_"})


@dataclass(frozen=True, slots=True)
class Branch:
    """What one operand of a sum is computed by.

    Attributes:
        name: The module that holds all of it, or the module that holds most of its weights.
        parameters: Dotted names of the parameters that nothing else reads.
        modules: Dotted names of the outermost modules that run for the branch alone, in execution order.
        calls: Indices of its operators in the recording.
        output: The operand.
        pinned: Why it must stay, or ``None`` where it may leave.
    """

    name: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    calls: frozenset[int]
    output: Value
    pinned: str | None = None

    @property
    def width(self) -> int:
        """A branch is there once."""
        return 1


def find_branches(model: nn.Module, example_inputs: ExampleInputs) -> tuple[Recording, tuple[Branch, ...]]:
    """Finds the residual branches of a network, those that must stay included.

    Args:
        model: Any module; it is run once in evaluation mode and left as it was.
        example_inputs: A tensor, a sequence of arguments or a mapping of keyword arguments.

    Returns:
        The recording, and the branches in execution order.

    Raises:
        GraphError: If the forward pass fails, or depends on the values of its inputs.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv = nn.Conv2d(4, 4, 3, padding=1)
    ...     def forward(self, x):
    ...         return x + self.conv(x).relu()
    >>> import torch
    >>> _, (branch,) = find_branches(nn.Sequential(Block()), torch.zeros(1, 4, 8, 8))
    >>> branch.name, branch.modules, branch.parameters
    ('0', ('0.conv',), ('0.conv.weight', '0.conv.bias'))
    """
    recording = record(model, example_inputs)
    refuse_steered(model, recording)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    search = _Search(recording, sizes)
    found = [branch for index in range(len(recording.calls)) if (branch := search.at(index)) is not None]
    return recording, _named(_disjoint(found), sizes)


def without_branches(recording: Recording, branches: Sequence[Branch]) -> Recording:
    """The recording of the network that has zeros where these branches ended.

    Args:
        recording: What the branches were found in.
        branches: Those that leave.
    """
    gone = frozenset[int]().union(*(branch.calls for branch in branches))
    zeros = {
        max(branch.calls): Call("aten.zeros.default", (), {}, (branch.output,), "") for branch in branches
    }
    calls = [
        zeros.get(index, call)
        for index, call in enumerate(recording.calls)
        if index in zeros or index not in gone
    ]
    return replace(recording, calls=tuple(calls))


class _Search:
    """One recording, looked through for branches."""

    def __init__(self, recording: Recording, sizes: Mapping[str, int]) -> None:
        self._recording, self._sizes = recording, sizes
        self._maker: dict[int, int] = {}
        self._readers: dict[int, set[int]] = defaultdict(set)
        #: Network inputs and everything computed from them.
        self._activations = {value.index for value in recording.inputs}
        for index, call in enumerate(recording.calls):
            for value in call.inputs:
                self._readers[value.index].add(index)
            made = {value.index for value in call.outputs}
            self._maker |= dict.fromkeys(made, index)
            if any(value.index in self._activations for value in call.inputs):
                self._activations |= made
        for value in recording.outputs:
            self._readers[value.index].add(len(recording.calls))

    def at(self, index: int) -> Branch | None:
        """The branch that the operator at ``index`` adds, if it adds one."""
        call = self._recording.calls[index]
        operands = [value for value in call.inputs if value.index in self._activations]
        if call.op.split(".")[1] not in SUMS or len(operands) != 2 or operands[0] == operands[1]:
            return None
        candidates = [self._branch(index, operand) for operand in operands]
        found = [branch for branch in candidates if branch is not None]
        if not found:
            return None
        # Of two, the one that takes more is the branch, and the other its shortcut, which stays.
        branch = max(found, key=lambda each: sum(self._sizes[name] for name in each.parameters))
        other = operands[0] if branch.output == operands[1] else operands[1]
        return replace(branch, pinned=self._refusal(call, branch, other))

    def _branch(self, addition: int, output: Value) -> Branch | None:
        """Everything that is computed for ``output`` alone; ``None`` where that is no layer."""
        last = self._maker.get(output.index)
        if last is None or self._readers_of(last) != {addition}:
            return None
        calls = {last}
        for index in range(last - 1, -1, -1):
            readers = self._readers_of(index)
            if readers and readers <= calls:
                calls.add(index)
        parameters = self._owned(calls)
        modules = self._outermost(calls)
        if not parameters:
            return None
        return Branch("", parameters, modules, frozenset(calls), output)

    def _readers_of(self, index: int) -> set[int]:
        """The operators that read what one operator computes."""
        outputs = self._recording.calls[index].outputs
        return set[int]().union(*(self._readers[value.index] for value in outputs))

    def _owned(self, calls: set[int]) -> tuple[str, ...]:
        """The parameters that only these operators read, in the order in which they are read."""
        read = [
            (value, self._readers[value.index])
            for index in sorted(calls)
            for value in self._recording.calls[index].inputs
        ]
        names = [value.name for value, readers in read if value.name in self._sizes and readers <= calls]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    def _outermost(self, calls: set[int]) -> tuple[str, ...]:
        """The outermost modules that run for these operators alone."""
        elsewhere = {
            place
            for index, call in enumerate(self._recording.calls)
            if index not in calls and self._readers_of(index)
            for place in _enclosing(call.module)
        }
        alone = self._recording.modules - elsewhere
        places = [
            next((place for place in _enclosing(self._recording.calls[index].module) if place in alone), "")
            for index in sorted(calls)
        ]
        return tuple(dict.fromkeys(place for place in places if place))

    def _refusal(self, call: Call, branch: Branch, other: Value) -> str | None:
        """Why the branch must stay, if it must."""
        if not branch.modules:
            return "its layers do other things too"
        if not branch.output.shape == other.shape == call.outputs[0].shape:
            return "the sum broadcasts"
        if call.kwargs.get("alpha", 1) != 1:
            return "the sum has a factor"
        shared = self._shared(branch)
        if shared:
            return f"{shared} is used elsewhere too"
        read = {value.index for index in branch.calls for value in self._recording.calls[index].inputs}
        if not read & self._origins(other):
            return "it has nothing in common with what it is added to"
        return None

    def _origins(self, value: Value) -> set[int]:
        """An activation and all that it is computed from."""
        found: set[int] = set()
        open_values = [value.index]
        while open_values:
            each = open_values.pop()
            if each in found or each not in self._activations:
                continue
            found.add(each)
            if each in self._maker:
                open_values += [value.index for value in self._recording.calls[self._maker[each]].inputs]
        return found

    def _shared(self, branch: Branch) -> str | None:
        """A parameter that the branch reads and that something else reads as well."""
        for index in sorted(branch.calls):
            for value in self._recording.calls[index].inputs:
                if value.name in self._sizes and not self._readers[value.index] <= branch.calls:
                    return value.name
        return None


def _enclosing(module: str) -> list[str]:
    """A module and those around it, outermost first, without the network itself.

    >>> _enclosing("a.b.c")
    ['a', 'a.b', 'a.b.c']
    """
    parts = module.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))] if module else []


def _disjoint(found: Sequence[Branch]) -> list[Branch]:
    """The branches in execution order; one that holds others stays, and so do equals after the first."""
    ordered = sorted(found, key=lambda branch: (min(branch.calls), len(branch.calls)))
    result = []
    for branch in ordered:
        inside = [
            other
            for other in ordered
            if other is not branch and other.pinned is None and other.calls < branch.calls
        ]
        if inside and branch.pinned is None:
            branch = replace(branch, pinned="it holds other branches")
        result.append(branch)
    return result


def _named(branches: Sequence[Branch], sizes: Mapping[str, int]) -> tuple[Branch, ...]:
    """Every branch with a name of its own."""
    around = [_common(branch.modules) for branch in branches]
    counts = Counter(around)
    names: Counter[str] = Counter()
    result = []
    for branch, place in zip(branches, around, strict=True):
        name = place if place and counts[place] == 1 else _heaviest(branch, sizes)
        names[name] += 1
        result.append(replace(branch, name=name if names[name] == 1 else f"{name}#{names[name]}"))
    return tuple(result)


def _common(modules: Sequence[str]) -> str:
    """The innermost module around all of these."""
    if len(modules) == 1:
        return modules[0].rpartition(".")[0]
    places = [_enclosing(module) for module in modules]
    common = [steps[0] for steps in zip(*places, strict=False) if len(set(steps)) == 1]
    return common[-1] if common else ""


def _heaviest(branch: Branch, sizes: Mapping[str, int]) -> str:
    """The module of the branch that holds most of its weights, or the owner of its first parameter."""
    if not branch.modules:
        return branch.parameters[0].rpartition(".")[0]
    held = {
        module: sum(sizes[name] for name in branch.parameters if name.startswith(module + "."))
        for module in branch.modules
    }
    return max(held, key=lambda module: held[module])
