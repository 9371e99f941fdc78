"""Times a folder of model files where hwprune is not installed: sent there, run there, gone afterwards.

It needs Python 3.9, the standard library, the runtime and what that brings along (numpy). The folder
holds the files and ``plan.json``; JSON lines go to stdout: what the machine is, the durations of every file,
and that it is done, or what went wrong.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hwprune.runtime.processor import machine
from hwprune.runtime.stopwatch import sample

PLAN_FILE = "plan.json"
Load = Callable[[Path, Mapping[str, Any], int], Callable[[], object]]


def _onnxruntime(path: Path, feed: Mapping[str, Any], threads: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feed)


def _openvino(path: Path, feed: Mapping[str, Any], threads: int) -> Callable[[], object]:
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape({name: list(value.shape) for name, value in feed.items()})
    compiled = core.compile_model(model, "CPU", {**options, "INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    return lambda: request.infer(dict(feed))


def _mnn(path: Path, feed: Mapping[str, Any], threads: int) -> Callable[[], object]:
    import MNN

    network = MNN.Interpreter(str(path))
    session = network.createSession({"backend": "CPU", "numThread": threads, "precision": "high"})
    tensors = network.getSessionInputAll(session)
    for name, value in feed.items():
        network.resizeTensor(tensors[name], value.shape)
    network.resizeSession(session)
    kinds = {"float32": MNN.Halide_Type_Float, "int32": MNN.Halide_Type_Int}
    layout = MNN.Tensor_DimensionType_Caffe
    # MNN has no wider integers.
    computed = {
        name: value.astype("int32") if str(value.dtype) == "int64" else value for name, value in feed.items()
    }

    def run() -> object:
        for name, value in computed.items():
            tensors[name].copyFrom(MNN.Tensor(value.shape, kinds[str(value.dtype)], value, layout))
        if code := network.runSession(session):  # it would be a very fast run
            raise ValueError(f"MNN ends a run with its error code {code}")
        return [tensor.getNumpyData() for tensor in network.getSessionOutputAll(session).values()]

    return run


def _ncnn(path: Path, feed: Mapping[str, Any], threads: int) -> Callable[[], object]:
    import ncnn
    import numpy as np

    network = ncnn.Net()
    network.opt.num_threads = threads
    network.opt.use_fp16_storage = network.opt.use_fp16_packed = network.opt.use_fp16_arithmetic = False
    if network.load_param(str(path)) or network.load_model(str(path.with_suffix(".bin"))):
        raise ValueError("ncnn cannot load the file")

    def run() -> object:
        outputs = []
        for image in range(len(next(iter(feed.values())))):  # ncnn has no batch
            extractor = network.create_extractor()
            for position, value in enumerate(feed.values()):
                extractor.input(f"in{position}", ncnn.Mat(value[image]))
            for name in network.output_names():
                code, blob = extractor.extract(name)
                if code:  # it would be a very fast run
                    raise ValueError(f"ncnn ends a run with its error code {code} for {name}")
                outputs.append(np.array(blob))
        return outputs

    return run


def _torch(path: Path, feed: Mapping[str, Any], threads: int) -> Callable[[], object]:
    import torch

    torch.set_num_threads(threads)
    network = torch.export.load(path).module()

    def run() -> object:
        with torch.inference_mode():
            outputs = network.forward(*(torch.from_numpy(value) for value in feed.values()))
        return [output.numpy() for output in outputs]

    return run


def _tensorrt(package: str) -> Load:
    """TensorRT, or that for RTX: the engine is built there, and the GPU's clock tells what a run takes."""

    def load(path: Path, feed: Mapping[str, Any], threads: int) -> Callable[[], object]:
        import torch

        library = importlib.import_module(package)
        logger = library.Logger(library.Logger.ERROR)
        builder = library.Builder(logger)
        network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = library.OnnxParser(network, logger)
        if not parser.parse(path.read_bytes()):
            raise ValueError(parser.get_error(0).desc())
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        config.set_flag(library.BuilderFlag.SPARSE_WEIGHTS)
        config.clear_flag(library.BuilderFlag.TF32)
        for name, value in feed.items():
            profile.set_shape(name, value.shape, value.shape, value.shape)
        config.add_optimization_profile(profile)
        content = builder.build_serialized_network(network, config)
        if content is None:
            raise ValueError("TensorRT cannot build an engine")
        engine = library.Runtime(logger).deserialize_cuda_engine(content)
        context, stream = engine.create_execution_context(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        for name, value in feed.items():
            context.set_input_shape(name, value.shape)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        # The widest elements for the outputs, whatever they are: nobody looks at them.
        tensors = {
            name: torch.from_numpy(feed[name]).cuda()
            if name in feed
            else torch.zeros(tuple(context.get_tensor_shape(name)), dtype=torch.float64, device="cuda")
            for name in names
        }

        def run() -> float:
            for name, tensor in tensors.items():
                context.set_tensor_address(name, tensor.data_ptr())
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record(stream)
            context.execute_async_v3(stream.cuda_stream)
            end.record(stream)
            end.synchronize()
            return float(begin.elapsed_time(end)) * 1e3

        return run

    return load


#: Runtime kind to how a file is made ready there, and the package whose version is told.
LOADERS: dict[str, tuple[Load, str]] = {
    "mnn": (_mnn, "MNN"),
    "mnn-sparse": (_mnn, "MNN"),
    "ncnn": (_ncnn, "ncnn"),
    "onnxruntime": (_onnxruntime, "onnxruntime"),
    "openvino": (_openvino, "openvino"),
    "tensorrt": (_tensorrt("tensorrt"), "tensorrt"),
    "tensorrt-rtx": (_tensorrt("tensorrt_rtx"), "tensorrt_rtx"),
    "torch": (_torch, "torch"),
}


def main(folder: Path, tell: Callable[[Mapping[str, Any]], None]) -> int:
    """Times the files of a folder as its plan says.

    Args:
        folder: Holds ``plan.json`` and the files.
        tell: Called with every record.

    Returns:
        The exit code.
    """
    plan = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
    load, package = LOADERS[plan["runtime"]]
    networks, loading = {}, ""
    try:
        version = version_of(package)
        tell({"machine": {**machine(), "runtime_version": version}})
        for entry in plan["files"]:
            loading = entry["name"]
            path, feed = folder / entry["file"], _feed(entry["inputs"])
            networks[loading] = [load(path, feed, plan["threads"]) for _ in range(plan["loadings"])]
            networks[loading][0]()
    except ImportError as error:  # that a package is not found is one, too
        tell({"error": "package", "got": str(error)})
        return 3
    except Exception as error:  # runtimes raise unrelated types
        told = str(error).strip().splitlines() or [type(error).__name__]
        tell({"error": "model", "file": loading, "got": told[0]})
        return 4
    for name, durations in sample(networks, plan["runs"]).items():
        tell({"name": name, "durations_us": [round(duration, 3) for duration in durations]})
    tell({"done": True})
    return 0


def version_of(package: str) -> str:
    """The installed version of a package, whatever its distribution is called.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(importlib.import_module(package).__version__)


def _feed(inputs: Sequence[tuple[str, Sequence[int], str]]) -> dict[str, Any]:
    """Random data for inputs of a name, shape and element type; zeros for integers."""
    import numpy as np

    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(shape).astype(dtype)
        if dtype.startswith("float")
        else np.zeros(shape, dtype)
        for name, shape, dtype in inputs
    }


def run(arguments: Sequence[str]) -> int:
    """Runs :func:`main` on the folder named, with stdout kept for its records: runtimes print there, too."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as records:
        os.dup2(2, 1)

        def tell(record: Mapping[str, Any]) -> None:
            records.write(json.dumps(record) + "\n")
            records.flush()

        return main(Path(arguments[0]), tell)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
