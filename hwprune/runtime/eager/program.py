"""Networks as programs of ``torch.export``: one file, which PyTorch alone loads and runs."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from hwprune.errors import RuntimeUnavailableError
from hwprune.files import replacing
from hwprune.runtime.base import InputInfo
from hwprune.runtime.onnx_values import Values

ENDING = ".pt2"
#: What open sizes are while the program is traced: a size of 1 would be taken for a constant.
_TRACED_SIZE = 2


def save_program(network: fx.GraphModule, values: Values, source: Path, target: Path) -> None:
    """Writes a network as a program whose open sizes are those of the ONNX file it came from.

    Args:
        network: As :func:`~hwprune.runtime.eager.graph.network_of` makes it.
        values: The inputs of the ONNX file.
        source: The ONNX file, for errors.
        target: The file, replaced atomically.

    Raises:
        RuntimeUnavailableError: If PyTorch cannot trace the network with open sizes.
    """
    example = tuple(
        torch.from_numpy(np.zeros([size or _TRACED_SIZE for size in item.shape], item.dtype))
        for item in values.inputs
    )
    sizes = {axis: torch.export.Dim(f"size_{axis}") for item in values.inputs for axis in _open(item)}
    shapes = tuple({axis: sizes[axis] for axis in _open(item)} for item in values.inputs)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(network, example, dynamic_shapes=shapes)
            torch.export.save(program, buffer)
    except Exception as error:  # the exporter raises whatever its parts raise
        raise RuntimeUnavailableError(
            "torch.export refuses the model",
            where=source,
            got=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}",
        ) from error
    with replacing(target) as temporary:
        temporary.write_bytes(buffer.getvalue())


def load_program(path: Path) -> tuple[Callable[..., Sequence[Tensor]], tuple[InputInfo, ...]]:
    """A program, without the checks of its inputs that calling it makes, and what it is to be fed.

    Raises:
        RuntimeUnavailableError: If the file is no program, or of another version of PyTorch.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
    except Exception as error:  # unrelated types, by what is wrong with the file
        raise RuntimeUnavailableError(
            "PyTorch cannot load the program", where=path, got=next(iter(str(error).splitlines()), "")
        ) from error
    wanted = program.graph_signature.user_inputs
    inputs = {node.name: node.meta["val"] for node in program.graph.nodes if node.name in wanted}
    return program.module().forward, tuple(
        InputInfo(name, tuple(map(_size, value.shape)), _numpy_type(value.dtype))
        for name, value in inputs.items()
    )


def _open(item: InputInfo) -> list[int]:
    return [axis for axis, size in enumerate(item.shape) if size is None]


def _size(size: Any) -> int | None:
    return size if isinstance(size, int) else None


def _numpy_type(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.zeros((), dtype=dtype).numpy().dtype
