"""The runtime ncnn on the CPU."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ncnn
import numpy as np
import onnx
import pnnx
from onnx import helper

from hwprune.device.profile import RuntimeSpec
from hwprune.errors import RuntimeUnavailableError
from hwprune.runtime.base import Array, Effort, InputInfo, Samples, check_batch
from hwprune.runtime.native import reason, run_converter, silenced
from hwprune.runtime.onnx_values import read_values

STRUCTURE, WEIGHTS = ".param", ".bin"
#: What would compute or store in half precision or integers.
_REDUCED = (
    *("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"),
    *("use_int8_packed", "use_int8_storage", "use_int8_arithmetic", "use_int8_inference"),
)
#: For an extraction: leave a blob as the layer wrote it, packed as it may be.
_AS_IT_IS = 1


class NcnnSession:
    """A network loaded into ncnn. It has no batch dimension: images of a batch run one after the other.

    Args:
        structure: The ``.param`` file, with the ``.bin`` file beside it.
        spec: Says how many threads.
        inputs: Inputs in the order of the network; by default as the file names them, in any shape.
        where: The file that was asked for, for errors.
    """

    def __init__(
        self,
        structure: Path,
        spec: RuntimeSpec,
        inputs: Sequence[InputInfo] | None = None,
        where: Path | None = None,
    ) -> None:
        self._where = where or structure
        self._network = _load(structure, spec, self._where)
        self._names = list(self._network.input_names())
        self._results = list(self._network.output_names())
        self.inputs = tuple(
            inputs or (InputInfo(name, (None,), np.dtype(np.float32)) for name in self._names)
        )

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        """Runs the network once for every image.

        Raises:
            RuntimeUnavailableError: If ncnn cannot.
        """
        batch = [np.ascontiguousarray(feed[item.name], dtype=np.float32) for item in self.inputs]
        images = [self._run(image) for image in zip(*batch, strict=True)]
        return [np.stack(values) for values in zip(*images, strict=True)]

    def _run(self, image: Sequence[Array]) -> list[Array]:
        extractor = self.extractor(image)
        return [np.array(self.extracted(extractor, name)) for name in self._results]

    def extracted(self, extractor: Any, name: str, *options: int) -> Any:
        """A blob of a run, computed where it is not there yet.

        Args:
            extractor: From :meth:`extractor`.
            name: The blob.
            options: How it is left.

        Raises:
            RuntimeUnavailableError: If ncnn cannot compute it, which would look like a very fast run.
        """
        code, blob = extractor.extract(name, *options)
        if code:
            raise RuntimeUnavailableError(
                "ncnn cannot run the model", where=self._where, got=f"its error code {code} for {name}"
            )
        return blob

    def extractor(self, values: Sequence[Array]) -> Any:
        """A run that is about to begin.

        Args:
            values: The inputs without the batch dimension; kept alive by the caller.
        """
        extractor = self._network.create_extractor()
        for name, value in zip(self._names, values, strict=True):
            extractor.input(name, ncnn.Mat(value))
        return extractor

    def layers(self) -> list[tuple[str, list[str], list[str]]]:
        """Type, blobs read and blobs written of every layer, in the order in which they run."""
        names = [blob.name for blob in self._network.blobs()]
        return [
            (layer.type, [names[index] for index in layer.bottoms], [names[index] for index in layer.tops])
            for layer in self._network.layers()
        ]


class Ncnn:
    """The CPU kernels of ncnn in single precision, converted by pnnx."""

    counts_recording = True

    def version(self) -> str:
        """The installed version."""
        return version("ncnn")

    def open(self, path: Path, spec: RuntimeSpec) -> NcnnSession:
        """Converts and loads an ONNX file, or loads the ``.param`` file of a network.

        Raises:
            RuntimeUnavailableError: If pnnx or ncnn refuses it.
        """
        if path.suffix == STRUCTURE:
            return NcnnSession(path, spec)
        with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
            structure, _ = _convert(path, Path(folder))
            return NcnnSession(structure, spec, read_values(path).inputs, where=path)

    def convert(self, source: Path, target: Path) -> tuple[Path, ...]:
        """Writes an ONNX file as a ``.param`` file with a ``.bin`` file beside it.

        Raises:
            RuntimeUnavailableError: If pnnx refuses it, or ncnn lacks a layer of it.
        """
        targets = (target, target.with_suffix(WEIGHTS))
        with tempfile.TemporaryDirectory(prefix=".hwprune-", dir=target.parent) as folder:
            files = _convert(source, Path(folder))
            _load(files[0], RuntimeSpec(kind="ncnn"), source)
            for file, final in zip(reversed(files), reversed(targets), strict=True):
                file.replace(final)
        return targets

    def operator_samples(
        self, model: bytes, spec: RuntimeSpec, feed: Mapping[str, Array], effort: Effort
    ) -> Samples:
        """Durations of layers, by extracting the blob of every layer in the order in which they run.

        ncnn computes a blob from those that are there already, so that an extraction runs one layer; it is
        left as the layer wrote it. What an extraction itself takes, a few microseconds, is in the durations.
        Maps go through a pooling of one pixel first, which packs channels as ncnn keeps them inside of
        networks and is not counted.

        Raises:
            RuntimeUnavailableError: If the batch has more than one image.
        """
        check_batch(spec)
        with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
            path = Path(folder) / "operators.onnx"
            path.write_bytes(packed(model))
            session = self.open(path, spec)
        values = [_without_batch(feed[item.name]) for item in session.inputs]
        layers = session.layers()
        blobs = [tops[-1] for kind, _, tops in layers if kind != "Input"]
        start = time.perf_counter()
        for _ in range(effort.warmup_runs):
            _record(session, values, blobs)
        runs = effort.runs((time.perf_counter() - start) / effort.warmup_runs)
        table = np.array([_record(session, values, blobs) for _ in range(runs)])
        names = branch_names(layers)
        return {
            name: table[:, position].tolist()
            for position, blob in enumerate(blobs)
            if (name := names.get(blob)) is not None
        }


def _record(session: NcnnSession, values: Sequence[Array], blobs: Sequence[str]) -> list[float]:
    """Runs a network once, layer by layer: microseconds of each."""
    extractor = session.extractor(values)
    durations = []
    for blob in blobs:
        start = time.perf_counter_ns()
        extracted = session.extracted(extractor, blob, _AS_IT_IS)
        durations.append((time.perf_counter_ns() - start) / 1e3)
        del extracted  # a layer that works in place copies a blob that somebody else holds
    return durations


def branch_names(layers: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> dict[str, str]:
    """Which branch of an operator model the layers belong to, by the last blob that each writes.

    Args:
        layers: Type, blobs read and blobs written, in the order in which they run. The result of branch
            3 is called ``out3``.

    Returns:
        Blob to ``op<branch>_<position>``; the poolings that pack the inputs are left out.

    >>> branch_names([("Input", [], ["in0"]), ("Pooling", ["in0"], ["1"]), ("ReLU", ["1"], ["out0"])])
    {'out0': 'op0_2'}
    """
    branch_of: dict[str, str] = {}
    names: dict[str, str] = {}
    fed = {top for kind, _, tops in layers if kind == "Input" for top in tops}
    for position, (kind, bottoms, tops) in reversed(list(enumerate(layers))):
        found = [branch_of.get(top, top.removeprefix("out")) for top in tops]
        branch_of.update(dict.fromkeys(bottoms, found[0]))
        if kind != "Input" and not (kind == "Pooling" and fed.issuperset(bottoms)):
            names[tops[-1]] = f"op{found[0]}_{position}"
    return names


def packed(content: bytes) -> bytes:
    """An operator model whose maps go through a pooling of one pixel before anything else.

    Without it pnnx takes the batch of a branch that has nothing but element-wise operators for a dimension
    of the map, and the first layer of a branch would have to pack the channels.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    through = {
        item.name
        for item in graph.input
        if len(item.type.tensor_type.shape.dim) == 4
        and not any(node.name.startswith("helper") and item.name in node.input for node in graph.node)
    }
    poolings = []
    for name in sorted(through):
        attributes = {"kernel_shape": [1, 1], "strides": [1, 1]}
        poolings.append(helper.make_node("MaxPool", [name], [f"packed_{name}"], **attributes))
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in through:
                node.input[position] = f"packed_{name}"
    nodes = [*poolings, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _without_batch(value: Array) -> Array:
    return np.ascontiguousarray(value[0] if value.shape[0] == 1 else value)


def _convert(source: Path, folder: Path) -> tuple[Path, Path]:
    """Has pnnx write ``source`` to ``folder``; it fixes the shapes of the inputs, the batch to 1."""
    inputs = read_values(source).inputs
    for item in inputs:
        if item.dtype != np.float32:
            raise RuntimeUnavailableError(
                "ncnn cannot be fed this input",
                where=f"{source}, input {item.name}",
                expected="float32",
                got=item.dtype,
            )
    shapes = ",".join(f"[{','.join(str(size or 1) for size in item.shape)}]" for item in inputs)
    model = folder / "network.onnx"  # pnnx writes a dozen files beside the one that it reads
    model.symlink_to(source.resolve())
    files = (folder / "network.ncnn.param", folder / "network.ncnn.bin")
    run_converter(
        [pnnx.EXEC_PATH, str(model), f"inputshape={shapes}", "fp16=0"], files, what="pnnx", where=source
    )
    return files


def _load(structure: Path, spec: RuntimeSpec, where: Path) -> Any:
    network = ncnn.Net()
    network.opt.num_threads = spec.threads
    network.opt.use_vulkan_compute = False
    for option in _REDUCED:
        setattr(network.opt, option, False)
    with silenced() as said:
        failed = network.load_param(str(structure)) or network.load_model(str(structure.with_suffix(WEIGHTS)))
    if failed:
        raise RuntimeUnavailableError("ncnn refuses the model", where=where, got=reason(said.text))
    return network
