"""PyTorch on the CPU, in eager mode: one function after the other, nothing fused."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, fx

from hwprune.device.profile import RuntimeSpec
from hwprune.errors import RuntimeUnavailableError
from hwprune.runtime.base import Array, Effort, InputInfo, Samples
from hwprune.runtime.eager.graph import network_of, read_model, value_of
from hwprune.runtime.eager.program import ENDING, load_program, save_program
from hwprune.runtime.onnx_values import read_values


class TorchSession:
    """A network that PyTorch runs without gradients, with as many threads as the profile says.

    Args:
        network: Gets the inputs in their order and returns the outputs.
        inputs: Inputs of the file in its order.
        spec: Says how many threads.
        where: The file, for errors.
    """

    def __init__(
        self,
        network: Callable[..., Sequence[Tensor]],
        inputs: Sequence[InputInfo],
        spec: RuntimeSpec,
        where: object,
    ) -> None:
        self.inputs = tuple(inputs)
        self._network, self._threads, self._where = network, spec.threads, where

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        """Runs the network once.

        Raises:
            RuntimeUnavailableError: If PyTorch refuses these inputs.
        """
        try:
            with as_deployed(self._threads):
                outputs = self._network(*(_tensor(feed[item.name]) for item in self.inputs))
        except (IndexError, RuntimeError, ValueError) as error:
            raise RuntimeUnavailableError(
                "PyTorch refuses the inputs of the model", where=self._where, got=_first_line(error)
            ) from error
        return [output.numpy() for output in outputs]


class TorchEager:
    """The CPU kernels of PyTorch in single precision, called from Python as a network's own code does."""

    counts_recording = False

    def version(self) -> str:
        """The installed version."""
        return version("torch")

    def open(self, path: Path, spec: RuntimeSpec) -> TorchSession:
        """Translates an ONNX file into calls of PyTorch, or loads an exported program.

        Raises:
            RuntimeUnavailableError: If the file has an operator that is not known here.
        """
        if path.suffix == ENDING:
            return TorchSession(*load_program(path), spec, path)
        values = read_values(path)
        # The module's own call would print an error's place in the generated code on the terminal.
        return TorchSession(network_of(read_model(path), path).forward, values.inputs, spec, path)

    def convert(self, source: Path, target: Path) -> tuple[Path, ...]:
        """Writes an ONNX file as a program of ``torch.export``, with open sizes where the ONNX file has them.

        Raises:
            RuntimeUnavailableError: If the file has an operator that is not known here, or PyTorch cannot
                leave its sizes open.
        """
        save_program(network_of(read_model(source), source), read_values(source), source, target)
        return (target,)

    def operator_samples(
        self, model: bytes, spec: RuntimeSpec, feed: Mapping[str, Array], effort: Effort
    ) -> Samples:
        """Durations of the calls that compute each value of the model, by the name of the value.

        A duration begins before the call and ends when what is not needed any more is freed: what the call
        costs from Python belongs to it here, because that is how the network is deployed. Nothing is taken
        off: reading the clock is all that recording adds, a tenth of a microsecond.
        """
        proto = onnx.load_from_string(model)
        inputs = [_tensor(feed[item.name]) for item in proto.graph.input]
        steps = _steps(network_of(proto, "an operator model"), inputs)
        with as_deployed(spec.threads):
            start = time.perf_counter()
            for _ in range(effort.warmup_runs):
                _record(steps)
            runs = effort.runs((time.perf_counter() - start) / effort.warmup_runs)
            recorded = [_record(steps) for _ in range(runs)]
        return {value: [durations[value] for durations in recorded] for value in recorded[0]}


@contextlib.contextmanager
def as_deployed(threads: int) -> Iterator[None]:
    """Runs networks as they are deployed, and leaves everything as it was to a training in the same process.

    Args:
        threads: For the operators of PyTorch; their number is one for the whole process.
    """
    before = torch.get_num_threads()
    if before != threads:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode(), _in_single_precision():
            yield
    finally:
        if before != threads:
            torch.set_num_threads(before)


def _in_single_precision() -> contextlib.AbstractContextManager[object]:
    """Ends a training's automatic mixed precision for a while, where there is one."""
    if torch.is_autocast_enabled("cpu"):
        return torch.autocast("cpu", enabled=False)
    return contextlib.nullcontext()


@dataclass(slots=True)
class _Step:
    """One call of a network.

    Attributes:
        value: The ONNX value that it helps to compute.
        function: What is called.
        arguments: Positional arguments, steps in the place of their results.
        options: Arguments by name.
        results: Step to its result; those of all steps, weights and inputs.
        key: Where its own result goes.
        last: Results that nobody needs after it.
    """

    value: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    results: dict[fx.Node, Any]
    key: fx.Node
    last: list[fx.Node]


def _steps(network: fx.GraphModule, inputs: Sequence[Tensor]) -> list[_Step]:
    """The calls of a network in their order; its outputs are not kept."""
    results: dict[fx.Node, Any] = {}
    steps: list[_Step] = []
    left = iter(inputs)
    for node in network.graph.nodes:
        if node.op == "placeholder":
            results[node] = next(left)
        elif node.op == "get_attr":
            results[node] = getattr(network, str(node.target))
        elif node.op != "output":
            function = _method(str(node.target)) if node.op == "call_method" else node.target
            steps.append(_Step(value_of(node), function, node.args, node.kwargs, results, node, []))
    seen = set(results)
    for step in reversed(steps):
        needed = [step.key, *step.key.all_input_nodes]
        step.last = [node for node in dict.fromkeys(needed) if node not in seen]
        seen.update(needed)
    return steps


def _method(name: str) -> Callable[..., Any]:
    return lambda values, *arguments, **options: getattr(values, name)(*arguments, **options)


def _record(steps: Sequence[_Step]) -> dict[str, float]:
    """Runs the calls once: microseconds by value."""
    durations: dict[str, float] = {}
    for step in steps:
        results = step.results
        arguments = fx.node.map_arg(step.arguments, results.__getitem__)
        options = fx.node.map_arg(step.options, results.__getitem__)
        start = time.perf_counter_ns()
        results[step.key] = step.function(*arguments, **options)
        del arguments, options
        for node in step.last:
            del results[node]
        durations[step.value] = durations.get(step.value, 0.0) + (time.perf_counter_ns() - start) / 1e3
    return durations


def _tensor(values: Array) -> Tensor:
    """The same memory as a tensor; PyTorch wants to be allowed to write to it."""
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
