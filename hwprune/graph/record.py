"""Records what a network computes: every ATen operator of one forward pass, in order.

The recording is what both the coupling of channels and the list of operators to price are read from.
It holds names and shapes only, no data, and follows whatever control flow the example inputs take
(:mod:`hwprune.graph.steering` tells whether others may take another).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from hwprune.errors import GraphError
from hwprune.graph.returned import tensors_in

ExampleInputs = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor at one point of the forward pass.

    Attributes:
        index: Unique within the recording; an in-place operator writes a new one.
        shape: Its shape.
        name: Dotted name of the parameter or buffer it is, ``None`` for everything else.
    """

    index: int
    shape: tuple[int, ...]
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One ATen operator.

    Attributes:
        op: Its name with overload, such as ``aten.convolution.default``.
        args: Positional arguments, tensors replaced by :class:`Value`.
        kwargs: Keyword arguments, tensors replaced by :class:`Value`.
        outputs: The tensors it returned.
        module: Dotted name of the innermost module that ran it.
        in_place: Whether it wrote into one of its arguments.
    """

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Value, ...]
    module: str
    in_place: bool = False

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Every tensor among the arguments, in order."""
        leaves = tree_flatten((self.args, dict(self.kwargs)))[0]
        return tuple(leaf for leaf in leaves if isinstance(leaf, Value))


@dataclass(frozen=True, slots=True)
class Recording:
    """One forward pass.

    Attributes:
        calls: Operators in execution order.
        inputs: The tensors the network was called with.
        outputs: The tensors it returned.
        modules: Dotted names of the modules that ran.
    """

    calls: tuple[Call, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    modules: frozenset[str] = frozenset()


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator below autograd and hands its result on unchanged."""

    def __init__(self, names: Mapping[int, str], module_stack: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self._names = names
        self._module_stack = module_stack
        # Weak, so that activations are freed as ever, and an identity that is used again is another tensor.
        self._values: MutableMapping[Tensor, Value] = WeakIdKeyDictionary()
        self._next = 0

    def value(self, tensor: Tensor, *, fresh: bool = False) -> Value:
        """The value that ``tensor`` holds now; a new one if it was just written."""
        if fresh or tensor not in self._values:
            self._values[tensor] = Value(self._next, tuple(tensor.shape), self._names.get(id(tensor)))
            self._next += 1
        return self._values[tensor]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}

        def as_value(leaf: Any) -> Any:
            return self.value(leaf) if isinstance(leaf, Tensor) else leaf

        seen = {id(leaf) for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)}
        noted_args, noted_kwargs = tree_map(as_value, (args, kwargs))
        before = _layout(args[0]) if func in _AS_STRIDED else None
        result = func(*args, **kwargs)
        restated = before is not None and before == _layout(result)
        written = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]
        outputs = tuple(self.value(leaf, fresh=True) for leaf in written)
        self.calls.append(
            Call(
                op="aten.alias.default" if restated else str(func),
                args=noted_args[:1] if restated else noted_args,
                kwargs={} if restated else noted_kwargs,
                outputs=outputs,
                module=self._module_stack[-1],
                in_place=any(id(leaf) in seen for leaf in written),
            )
        )
        return result


#: How the pooling of a channels-last map restates the strides of its result.
_AS_STRIDED = (torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_.default)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """Which elements of its storage a tensor names, in order; a stride along a size of 1 says nothing."""
    strides = (stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    return tensor.storage_offset(), tuple(tensor.shape), *strides


@contextmanager
def _tracked_modules(
    model: nn.Module, stack: list[str], ran: set[str], raised: dict[int, str]
) -> Iterator[None]:
    """Keeps the dotted name of the running module on top of ``stack``, and all of them in ``ran``.

    What a module raises is put into ``raised``, by its ``id``, with the name of the innermost one.
    """
    handles = []
    for name, module in model.named_modules():

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            stack.append(name)
            ran.add(name)

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            error = sys.exception()
            if error is not None:
                raised.setdefault(id(error), stack[-1])
            stack.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Keeps PyTorch from running whole transformer layers as one operator that nobody can look into."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts every module into evaluation mode and each back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def beside(model: nn.Module, example_inputs: ExampleInputs) -> ExampleInputs:
    """The inputs on the device of ``model``, which may have been moved since they were made.

    Args:
        model: One that is spread over several devices, or has no parameter, gets what is given.
        example_inputs: See :func:`call_model`.
    """
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        return example_inputs
    (device,) = devices
    given = dict(example_inputs) if isinstance(example_inputs, Mapping) else example_inputs
    moved: ExampleInputs = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, given)
    return moved


def call_model(model: nn.Module, example_inputs: ExampleInputs) -> Any:
    """Calls ``model`` with a tensor, a sequence of arguments or a mapping of keyword arguments.

    They are put on the device of the model, see :func:`beside`.
    """
    example_inputs = beside(model, example_inputs)
    if isinstance(example_inputs, Tensor):
        return model(example_inputs)
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    return model(*example_inputs)


def call_observed(
    model: nn.Module, example_inputs: ExampleInputs, handles: Sequence[RemovableHandle]
) -> None:
    """Calls ``model`` once in evaluation mode for the sake of its hooks, which are then removed.

    Args:
        model: Its mode is left as it was.
        example_inputs: See :func:`call_model`.
        handles: Of the hooks; removed also where the forward pass fails.
    """
    try:
        with evaluation_mode(model), torch.no_grad():
            call_model(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()


def check_initialised(model: nn.Module) -> None:
    """Raises where a layer makes its weights only when it is called for the first time.

    Raises:
        GraphError: In that case.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise GraphError(
            "a layer has no weights yet",
            where=lazy[0],
            expected="a network that was called once",
            hint="call the model with the example inputs first",
        )


def record(model: nn.Module, example_inputs: ExampleInputs) -> Recording:
    """Runs ``model`` once in evaluation mode and records its operators.

    Args:
        model: Any module; its mode, parameters and buffers are left as they were.
        example_inputs: A tensor, a sequence of arguments or a mapping of keyword arguments.

    Returns:
        The operators, inputs and outputs.

    Raises:
        GraphError: If the forward pass fails, an input is empty, or a layer has no weights yet.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    >>> [call.op for call in record(net, torch.zeros(1, 1, 8, 8)).calls]
    ['aten.convolution.default', 'aten.relu.default']
    """
    check_initialised(model)
    names = {id(tensor): name for name, tensor in model.named_buffers()}
    names |= {id(tensor): name for name, tensor in model.named_parameters()}
    stack, ran, raised = [""], set[str](), dict[int, str]()
    example_inputs = beside(model, example_inputs)
    recorder = _Recorder(names, stack)
    leaves = [leaf for leaf in tree_flatten(example_inputs)[0] if isinstance(leaf, Tensor)]
    if any(not leaf.numel() for leaf in leaves):
        raise GraphError(
            "an example input is empty",
            where="the example inputs",
            expected="what the network is called with, one image or more",
            got=", ".join(str(list(leaf.shape)) for leaf in leaves),
        )
    inputs = tuple(recorder.value(leaf) for leaf in leaves)
    try:
        with (
            evaluation_mode(model),
            torch.no_grad(),
            _plain_attention(),
            _tracked_modules(model, stack, ran, raised),
            recorder,
        ):
            result = call_model(model, example_inputs)
    except Exception as error:
        raise GraphError(
            "the forward pass of the model fails on the example inputs",
            where=f"{type(model).__name__}.{raised.get(id(error), '')}".rstrip("."),
            expected="a forward pass without error",
            got=f"{type(error).__name__}: {error}",
            hint="call the model with the example inputs by hand and mend what it raises",
        ) from error
    return Recording(
        calls=tuple(recorder.calls),
        inputs=inputs,
        outputs=tuple(recorder.value(leaf) for leaf in tensors_in(result)),
        modules=frozenset(ran),
    )
