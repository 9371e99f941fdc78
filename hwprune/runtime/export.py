"""Networks as ONNX files."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import onnx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from hwprune.errors import GraphError, InputError
from hwprune.files import replacing
from hwprune.graph.record import ExampleInputs
from hwprune.graph.twin import copy_of
from hwprune.runtime.fold_zeros import fold_zeros

Inputs = TypeVar("Inputs")
#: The operator set that is written.
OPSET = 18


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export came to.

    Attributes:
        path: The file.
        dynamic_batch: Whether the batch size is left open.
        note: Why not, where it is not.
    """

    path: Path
    dynamic_batch: bool
    note: str = ""


def export(
    model: nn.Module, path: str | Path, example_inputs: ExampleInputs, *, batch: int | None = None
) -> Exported:
    """Writes ``model`` as a checked, single-file ONNX model with an open batch size.

    Args:
        model: Exported in evaluation mode as a copy; not touched.
        path: The file, replaced atomically. Its folder must exist.
        example_inputs: A tensor, a sequence of arguments or a mapping of keyword arguments; dimension 0 of
            every tensor is the batch.
        batch: The batch size where the network fixes it; by default that of the example inputs.

    Returns:
        The path, and whether the batch size is open: a network that fixes it is exported as it is,
        with the reason.

    Raises:
        GraphError: If the network cannot be exported.
        InputError: If the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError("the folder to export to does not exist", where=path.parent)
    twin = copy_of(model).cpu().eval()
    args, kwargs = _as_arguments(example_inputs)
    try:
        # A batch of 1 would be taken for a constant.
        proto, note = _to_proto(twin, *at_batch((args, kwargs), None, least=2), dynamic=True), ""
        if not _open_batch(proto):
            raise GraphError("the forward pass takes the batch size for a constant")
    except Exception as error:
        try:
            proto = _to_proto(twin, *at_batch((args, kwargs), batch), dynamic=False)
        except Exception as second:
            raise GraphError(
                "the network cannot be exported to ONNX",
                expected="a network that torch.onnx.export accepts",
                got=f"{type(second).__name__}: {_first_line(second)}",
            ) from second
        note = f"the batch size is fixed: {type(error).__name__}: {_first_line(error)}"
    fold_zeros(proto, twin.state_dict().keys())
    onnx.checker.check_model(proto)
    with replacing(path) as temporary:
        onnx.save_model(proto, str(temporary))
    return Exported(path, dynamic_batch=not note, note=note)


def _as_arguments(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments and those by name, their tensors where the exported copy is: on the processor."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, Tensor):
        args = (example_inputs,)
    elif isinstance(example_inputs, Mapping):
        kwargs = dict(example_inputs)
    else:
        args = tuple(example_inputs)
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.detach().cpu(), (args, kwargs))
    return args, kwargs


def _to_proto(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool
) -> onnx.ModelProto:
    shapes = None
    if dynamic:
        batch = torch.export.Dim("batch")
        shapes = tuple(_batched(value, batch) for value in (*args, *kwargs.values()))
    with _quiet():
        program = torch.onnx.export(
            model,
            args,
            kwargs=kwargs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            verbose=False,
        )
    if program is None:
        raise GraphError("torch.onnx.export returned nothing")
    proto: onnx.ModelProto = program.model_proto
    return proto


def at_batch(inputs: Inputs, batch: int | None, least: int = 1) -> Inputs:
    """Inputs whose tensors hold as many examples as asked for, or their own number and some at least.

    Args:
        inputs: Tensors in any containers; what has another number of rows than the first has no batch.
        batch: Examples; ``None`` for their own number.
        least: How many of those at least.
    """
    sizes = [leaf.shape[0] for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    given = sizes[0] if sizes else 0

    def sized(value: Tensor) -> Tensor:
        if not value.ndim or value.shape[0] != given or not given:
            return value
        wanted = batch or max(given, least)
        return value.repeat(-(-wanted // given), *[1] * (value.ndim - 1))[:wanted]

    made: Inputs = tree_map_only(Tensor, sized, inputs)
    return made


def _open_batch(proto: onnx.ModelProto) -> bool:
    """Whether some input's batch size is open: the exporter may fix it without a word."""
    shapes = [item.type.tensor_type.shape for item in proto.graph.input]
    return any(shape.dim and not shape.dim[0].HasField("dim_value") for shape in shapes)


def _batched(value: Any, batch: Any) -> Any:
    return {0: batch} if isinstance(value, Tensor) and value.ndim else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what the exporter prints, warns and logs: what matters of it is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""
