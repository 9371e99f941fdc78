"""The runtime MNN on the CPU, dense or with its kernels for sparse weights."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hwprune.device.profile import RuntimeSpec
from hwprune.errors import RuntimeUnavailableError
from hwprune.files import replacing
from hwprune.runtime.base import Array, Effort, InputInfo, Samples
from hwprune.runtime.native import run_converter, silenced
from hwprune.runtime.onnx_values import Values, read_values

with silenced():  # it tells the features of the CPU on stdout
    import MNN

ENDING = ".mnn"
#: What MNN computes with for what a file says; it has no wider integers.
_COMPUTED = {np.dtype(np.float32): np.float32, np.dtype(np.int32): np.int32, np.dtype(np.int64): np.int32}
_TYPES = {np.float32: MNN.Halide_Type_Float, np.int32: MNN.Halide_Type_Int}
#: The package's console script does the same, but first installs a package that reports each conversion,
#: with an identifier of the machine, to the maker's server: it is never used here.
_CONVERTER = [sys.executable, "-P", "-c", "import sys, _tools; _tools.mnnconvert(sys.argv)"]
_SPARSE = "--detectSparseSpeedUp"
#: Kernels of a branch of an operator model: named after a value of it.
_OF_BRANCH = re.compile(r"[zsy](\d+)(?:__.*|_raster_\d+)?")
#: Copies between layouts at the edges of a branch, which networks do not have there.
_AT_EDGE = re.compile(r"[zsyh]\d+(?:__before_tr)?_raster_\d+")
_HELPER = re.compile(r"h\d+(?:_raster_\d+)?")
_COPY = "Raster"


class MnnSession:
    """A model file loaded into MNN, which plans memory and kernels anew where the shape of an input changes.

    Args:
        path: A file of MNN.
        spec: Says how many threads.
        values: Inputs and outputs in the order of the network.
        where: The file that was asked for, for errors.
    """

    def __init__(self, path: Path, spec: RuntimeSpec, values: Values, where: Path) -> None:
        self.inputs, self._where = values.inputs, where
        self._names = values.outputs
        options = {"backend": "CPU", "numThread": spec.threads, "precision": "high"}
        try:
            with silenced():
                self._network = MNN.Interpreter(str(path))
                self._session = self._network.createSession(options)
        except Exception as error:  # the runtime raises the base class
            raise RuntimeUnavailableError("MNN refuses the model", where=where, got=error) from error
        self._tensors = self._network.getSessionInputAll(self._session)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._results: list[tuple[Any, Any]] = []

    def feed(self, feed: Mapping[str, Array]) -> None:
        """Copies the inputs in; plans anew where their shapes are others than before."""
        shapes = {item.name: feed[item.name].shape for item in self.inputs}
        if shapes != self._shapes:
            self._resize(shapes)
        for item in self.inputs:
            computed = _COMPUTED[item.dtype]
            values = np.ascontiguousarray(feed[item.name], dtype=computed)
            kind, layout = _TYPES[computed], MNN.Tensor_DimensionType_Caffe
            self._tensors[item.name].copyFrom(MNN.Tensor(values.shape, kind, values, layout))

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        """Runs the model once.

        Raises:
            RuntimeUnavailableError: If MNN cannot.
        """
        self.feed(feed)
        self._check(self._network.runSession(self._session))
        outputs = []
        for tensor, host in self._results:
            tensor.copyToHostTensor(host)
            outputs.append(np.array(host.getNumpyData()).reshape(tensor.getShape()))
        return outputs

    def record(self, feed: Mapping[str, Array]) -> list[tuple[str, str, float]]:
        """Runs the model once: name, type and microseconds of every kernel, in order.

        The inputs are copied in before every run: MNN uses their memory for later values, and what is left
        there may be denormal, which kernels take ten times as long for.

        Raises:
            RuntimeUnavailableError: If MNN cannot.
        """
        self.feed(feed)
        kernels: list[tuple[str, str, float]] = []
        started = 0

        def before(tensors: object, kernel: Any) -> bool:
            nonlocal started
            started = time.perf_counter_ns()
            return True

        def after(tensors: object, kernel: Any) -> bool:
            ended = time.perf_counter_ns()
            kernels.append((kernel.getName(), kernel.getType(), (ended - started) / 1e3))
            return True

        self._check(self._network.runSessionWithCallBackInfo(self._session, before, after))
        return kernels

    def _check(self, code: int) -> None:
        """Raises for a run that ended early: it would be a very fast one."""
        if code:
            raise RuntimeUnavailableError(
                "MNN cannot run the model", where=self._where, got=f"its error code {code}"
            )

    def _resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        with silenced():
            for name, shape in shapes.items():
                self._network.resizeTensor(self._tensors[name], shape)
            self._network.resizeSession(self._session)
        self._shapes = dict(shapes)
        tensors = self._network.getSessionOutputAll(self._session)
        self._results = [(tensors[name], _host_tensor(tensors[name])) for name in self._names]


def _host_tensor(tensor: Any) -> Any:
    """Memory for a tensor of MNN in the layout of its shape."""
    kinds = [computed for computed, kind in _TYPES.items() if kind == tensor.getDataType()]
    computed = kinds[0] if kinds else np.float32
    shape = tensor.getShape()
    empty = np.zeros(shape, dtype=computed)
    return MNN.Tensor(shape, _TYPES[computed], empty, MNN.Tensor_DimensionType_Caffe)


class Mnn:
    """The CPU backend of MNN in single precision.

    Args:
        sparse: Whether convolutions with many weights of zero run in the kernels that skip them; MNN decides
            when it converts a file, layer by layer.
    """

    counts_recording = True

    def __init__(self, *, sparse: bool = False) -> None:
        self._sparse = sparse

    def version(self) -> str:
        """The installed version."""
        return version("MNN")

    def open(self, path: Path, spec: RuntimeSpec) -> MnnSession:
        """Converts and loads an ONNX file, or loads a file of MNN.

        Raises:
            RuntimeUnavailableError: If MNN refuses it.
        """
        if path.suffix == ENDING:
            return MnnSession(path, spec, _stored_values(path), path)
        with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
            target = Path(folder) / f"network{ENDING}"
            values = read_values(path)
            _check_types(values.inputs, path)
            self._convert(path, target)
            return MnnSession(target, spec, values, path)

    def convert(self, source: Path, target: Path) -> tuple[Path, ...]:
        """Writes an ONNX file as one of MNN, with an open batch size where the ONNX file has one.

        Raises:
            RuntimeUnavailableError: If the converter refuses it.
        """
        with replacing(target) as temporary:
            self._convert(source, temporary.resolve())
        return (target,)

    def operator_samples(
        self, model: bytes, spec: RuntimeSpec, feed: Mapping[str, Array], effort: Effort
    ) -> Samples:
        """Kernel durations between the two calls that MNN makes around every kernel.

        The calls cost a microsecond or two, which is in the durations. MNN keeps maps in a layout of its own;
        copies into it and out of it at the edges of a branch do not count, those between the parts of an
        operator do.
        """
        with tempfile.TemporaryDirectory(prefix="hwprune-") as folder:
            path = Path(folder) / "operators.onnx"
            path.write_bytes(model)
            session = self.open(path, spec)
        start = time.perf_counter()
        for _ in range(effort.warmup_runs):
            kernels = session.record(feed)
        runs = effort.runs((time.perf_counter() - start) / effort.warmup_runs)
        names = branch_names([kernel[:2] for kernel in kernels])
        samples: Samples = {name: [] for name in names if name is not None}
        for _ in range(runs):
            for name, (_, _, duration) in zip(names, session.record(feed), strict=True):
                if name is not None:
                    samples[name].append(duration)
        return samples

    def _convert(self, source: Path, target: Path) -> None:
        options = ["-f", "ONNX", "--modelFile", str(source.resolve()), "--MNNModel", str(target)]
        options += ["--bizCode", "hwprune", *([_SPARSE] if self._sparse else [])]
        run_converter([*_CONVERTER, *options], [target], what="MNN's converter", where=source)


class MnnSparse(Mnn):
    """MNN with its kernels for sparse weights."""

    def __init__(self) -> None:
        super().__init__(sparse=True)


def branch_names(kernels: Sequence[tuple[str, str]]) -> list[str | None]:
    """Which branch of an operator model every kernel belongs to, as names that the model understands.

    MNN names most kernels after the value that they write, and splits some operators into several kernels:
    those without such a name run right before the named one.

    Args:
        kernels: Name and type of every kernel, in the order in which they run.

    Returns:
        ``op<branch>_<position>``, or ``None`` for what does not count: helpers, and copies at the edges
        of a branch that does anything else.

    >>> branch_names([("z0_raster_0", "Raster"), ("z0", "Convolution"), ("y1_raster_0", "Raster")])
    [None, 'op0_1', 'op1_2']
    """
    branches: list[int | None] = []
    following: int | None = None
    for name, _ in reversed(kernels):
        match = _OF_BRANCH.fullmatch(name)
        following = int(match[1]) if match else following
        branches.append(None if _HELPER.fullmatch(name) else following)
    branches.reverse()
    computing = {branch for branch, (_, kind) in zip(branches, kernels, strict=True) if kind != _COPY}
    names: list[str | None] = []
    for position, (branch, (name, kind)) in enumerate(zip(branches, kernels, strict=True)):
        edge = kind == _COPY and branch in computing and _AT_EDGE.fullmatch(name)
        names.append(None if branch is None or edge else f"op{branch}_{position}")
    return names


def _stored_values(path: Path) -> Values:
    """Inputs and the names of the outputs of a file of MNN, which keeps an open batch size as 1."""
    try:
        with silenced():
            module = MNN.nn.load_module_from_file(str(path), [], [])
            facts = module.get_info()
    except Exception as error:  # the runtime raises the base class
        raise RuntimeUnavailableError("MNN refuses the model", where=path, got=error) from error
    kinds = {MNN.expr.float: np.float32, MNN.expr.int: np.int32}
    inputs = tuple(
        InputInfo(name, tuple(item.shape), np.dtype(kinds.get(item.dtype, np.float32)))
        for name, item in zip(facts["inputNames"], facts["inputs"], strict=True)
    )
    return Values(inputs, tuple(facts["outputNames"]))


def _check_types(inputs: Sequence[InputInfo], path: Path) -> None:
    for item in inputs:
        if item.dtype not in _COMPUTED:
            raise RuntimeUnavailableError(
                "MNN cannot be fed this input",
                where=f"{path}, input {item.name}",
                expected=f"one of {', '.join(map(str, _COMPUTED))}",
                got=item.dtype,
            )
