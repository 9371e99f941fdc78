"""Post-training quantisation: a network in single precision becomes one that runs on 8 bits.

The result is an ONNX file with pairs of quantising and dequantising nodes (QDQ) around its operators, which
ONNX Runtime and OpenVINO both turn into kernels on integers.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from hwprune.errors import InputError, RuntimeUnavailableError
from hwprune.files import replacing
from hwprune.runtime.base import Array

#: Weights take 7 of the 8 bits. Processors without VNNI add two products of bytes in 16 bits, which overflow
#: where both are at full range; with half of it they cannot, and one file is right everywhere. Activations
#: are unsigned because the kernels of such processors multiply unsigned bytes with signed ones.
SEVEN_BITS = True
#: ONNX operators that have kernels on integers, or pass integers on. Others (normalisations, transposed
#: convolutions, softmax) stay in single precision: their weights would be converted back in every run.
QUANTIZED_OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Relu", "Clip", "LeakyRelu", "Sigmoid", "Resize", "Pad", "Split"),
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
)
_QUANTIZING = "QuantizeLinear"


class _Batches:
    """Hands batches to the calibration, one after the other."""

    def __init__(self, batches: Sequence[Mapping[str, Array]]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        """The next batch, ``None`` after the last."""
        batch = next(self._left, None)
        return None if batch is None else dict(batch)


def quantize(
    source: Path, target: Path, batches: Sequence[Mapping[str, Array]], *, isolated: bool = False
) -> None:
    """Writes an ONNX file quantised to 8 bits: weights per output channel, activations per tensor.

    Weights are symmetric around zero; activations are unsigned, over the range that they take on the
    batches. An operator that has no kernel on integers stays in single precision between two conversions.

    Args:
        source: An ONNX file in single precision.
        target: The file to write, replaced atomically.
        batches: What to calibrate on: input name to values, as many images to a batch as fit into memory.
        isolated: Whether operators that pass on what they get (poolings, reshapes) work on integers even
            where nothing before them does.

    Raises:
        InputError: If there is no batch, no such file, or it is quantised already.
        RuntimeUnavailableError: If the network cannot be quantised.
    """
    if not batches:
        raise InputError("nothing to calibrate the quantisation on", where=source, expected="a batch or more")
    if is_quantized(source):
        raise InputError("the network is quantised already", where=source, expected="single precision")
    with tempfile.TemporaryDirectory(prefix="hwprune-") as folder, replacing(target) as temporary:
        try:
            with _quiet():
                _quantize(source, Path(folder) / "prepared.onnx", temporary, _Batches(batches), isolated)
        except Exception as error:  # the quantiser raises whatever its parts raise
            raise RuntimeUnavailableError(
                "the network cannot be quantised", where=source, got=f"{type(error).__name__}: {error}"
            ) from error


def _quantize(source: Path, prepared: Path, target: Path, batches: _Batches, isolated: bool) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Open batch sizes need no symbolic inference, and that needs a package more.
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    _means_as_poolings(prepared)
    quantize_static(
        str(prepared),
        str(target),
        batches,
        op_types_to_quantize=list(QUANTIZED_OPERATORS),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=SEVEN_BITS,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"WeightSymmetric": True, "ForceQuantizeNoInputCheck": isolated},
    )


def _means_as_poolings(path: Path) -> None:
    """Rewrites means over whole maps as poolings, which have kernels on integers."""
    model = onnx.load(str(path))
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    ranks = {item.name: len(item.type.tensor_type.shape.dim) for item in model.graph.value_info}
    unread: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        kept = all(item.i for item in node.attribute if item.name == "keepdims")
        axes = {int(axis) % 4 for axis in constants[node.input[1]]}
        if kept and axes == {2, 3} and ranks.get(node.input[0]) == 4:
            node.op_type = "GlobalAveragePool"
            unread.add(node.input[1])
            del node.input[1:], node.attribute[:]
    # Constants that nobody reads any more would make ONNX Runtime warn on the terminal.
    unread -= {name for node in model.graph.node for name in node.input}
    for item in [item for item in model.graph.initializer if item.name in unread]:
        model.graph.initializer.remove(item)
    onnx.save_model(model, str(path))


def is_quantized(path: Path) -> bool:
    """Whether an ONNX file, or an intermediate representation of OpenVINO, quantises any of its values.

    Raises:
        InputError: If there is no such file or it is not ONNX.
    """
    if path.suffix == ".xml" and path.is_file():
        return b'type="FakeQuantize"' in path.read_bytes()
    return any(node.op_type == _QUANTIZING for node in read_graph(path).node)


def read_graph(path: Path) -> onnx.GraphProto:
    """The graph of an ONNX file.

    Raises:
        InputError: If there is no such file or it is not ONNX.
    """
    if not path.is_file():
        raise InputError("no such model file", where=path, expected="an ONNX file")
    try:
        graph: onnx.GraphProto = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf raises unrelated types
        raise InputError("not a readable ONNX file", where=path, got=type(error).__name__) from error
    return graph


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the advice that the quantiser logs to itself: what matters of it is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
