"""What goes into an ONNX file and what comes out, for runtimes that read it converted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from hwprune.errors import RuntimeUnavailableError
from hwprune.runtime.base import InputInfo


@dataclass(frozen=True, slots=True)
class Values:
    """The interface of a network.

    Attributes:
        inputs: Inputs in the order of the file.
        outputs: Names of the outputs in the order of the file.
    """

    inputs: tuple[InputInfo, ...]
    outputs: tuple[str, ...]


def read_values(path: Path) -> Values:
    """Reads inputs and outputs of an ONNX file, not its weights' values.

    Raises:
        RuntimeUnavailableError: If it is not ONNX.
    """
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf raises unrelated types
        raise RuntimeUnavailableError(
            "every runtime refuses the model: not a readable ONNX file", where=path, got=type(error).__name__
        ) from error
    weights = {item.name for item in graph.initializer}
    inputs = tuple(
        InputInfo(
            item.name,
            tuple(
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in item.type.tensor_type.shape.dim
            ),
            np.dtype(onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)),
        )
        for item in graph.input
        if item.name not in weights
    )
    return Values(inputs, tuple(item.name for item in graph.output))
