"""What makes a variant's folder ready to ship: the runtime's own format, a README and lines that run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwprune.device.profile import DeviceProfile, RuntimeSpec
from hwprune.device.runtimes import CPU_PROVIDER, GPU_PROVIDERS
from hwprune.files import sha256_of, write_text
from hwprune.measured_on import stand_in_for
from hwprune.outcome import shortfall_line
from hwprune.output_folder import INT8_FILE, INT8_FOLDER, INT8_STEM, MODEL_FILE
from hwprune.run_page import target_label
from hwprune.runtime.formats import FORMATS, convert

RUN_FILE, README_FILE = "run.py", "README.md"
#: Runtime kind to the format it deploys, where that is not ONNX.
DEPLOYED_AS = {
    name: name for name in ("openvino", "mnn", "mnn-sparse", "ncnn", "tensorrt", "tensorrt-rtx", "torch")
}
_MNN_LINES = '''"""Loads the network and runs it once on random images of shape {shape}."""

from pathlib import Path

import MNN
import numpy as np

network = MNN.Interpreter(str(Path(__file__).parent / "{file}"))
session = network.createSession({{"backend": "CPU", "numThread": {threads}, "precision": "high"}})
source = network.getSessionInput(session)
network.resizeTensor(source, tuple({shape}))
network.resizeSession(session)
images = np.random.default_rng(0).standard_normal({shape}).astype(np.float32)
source.copyFrom(MNN.Tensor({shape}, MNN.Halide_Type_Float, images, MNN.Tensor_DimensionType_Caffe))
network.runSession(session)
result = network.getSessionOutput(session)
scores = np.zeros(result.getShape(), np.float32)
held = MNN.Tensor(result.getShape(), MNN.Halide_Type_Float, scores, MNN.Tensor_DimensionType_Caffe)
result.copyToHostTensor(held)
print("classes", np.array(held.getNumpyData()).reshape(scores.shape).argmax(axis=1))
'''
_TENSORRT_LINES = '''"""Loads the network and runs it once on random images of shape {{shape}}."""

from pathlib import Path

import {package}
import torch

logger = {package}.Logger({package}.Logger.ERROR)
content = (Path(__file__).parent / "{{file}}").read_bytes()
engine = {package}.Runtime(logger).deserialize_cuda_engine(content)
context = engine.create_execution_context()
source, target = (engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
images = torch.randn({{shape}}, generator=torch.Generator().manual_seed(0)).cuda()
context.set_input_shape(source, tuple(images.shape))
scores = torch.empty(tuple(context.get_tensor_shape(target)), device="cuda")
context.set_tensor_address(source, images.data_ptr())
context.set_tensor_address(target, scores.data_ptr())
torch.cuda.synchronize()
stream = torch.cuda.Stream()
context.execute_async_v3(stream.cuda_stream)
stream.synchronize()
print("classes", scores.argmax(dim=1).tolist())
'''
#: Runtime kind to a script that loads ``{file}`` with ``{threads}`` threads and runs it on random images;
#: ``{provider}`` is who executes it in ONNX Runtime.
RUN_LINES = {
    "onnxruntime": '''"""Loads the network and runs it once on random images of shape {shape}."""

from pathlib import Path

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {threads}
model = Path(__file__).parent / "{file}"
session = onnxruntime.InferenceSession(str(model), options, providers=["{provider}"])
images = np.random.default_rng(0).standard_normal({shape}).astype(np.float32)
(scores,) = session.run(None, {{session.get_inputs()[0].name: images}})
print("classes", scores.argmax(axis=1))
''',
    "openvino": '''"""Loads the network and runs it once on random images of shape {shape}."""

from pathlib import Path

import numpy as np
import openvino

options = {{"INFERENCE_NUM_THREADS": {threads}, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}}
options["INFERENCE_PRECISION_HINT"] = "f32"  # as it was measured; processors with bfloat16 would use that
core = openvino.Core()
network = core.read_model(str(Path(__file__).parent / "{file}"))
network.reshape({shape})
compiled = core.compile_model(network, "CPU", options)
images = np.random.default_rng(0).standard_normal({shape}).astype(np.float32)
scores = compiled([images])[0]
print("classes", scores.argmax(axis=1))
''',
    "mnn": _MNN_LINES,
    "mnn-sparse": _MNN_LINES,
    "ncnn": '''"""Loads the network and runs it once on every image of a random batch of shape {shape}."""

from pathlib import Path

import ncnn
import numpy as np

network = ncnn.Net()
network.opt.num_threads = {threads}
network.opt.use_fp16_storage = network.opt.use_fp16_packed = network.opt.use_fp16_arithmetic = False
structure = Path(__file__).parent / "{file}"
network.load_param(str(structure))
network.load_model(str(structure.with_suffix(".bin")))
images = np.random.default_rng(0).standard_normal({shape}).astype(np.float32)
for image in images:
    run = network.create_extractor()
    run.input("in0", ncnn.Mat(image))
    scores = np.array(run.extract("out0")[1])
    print("class", scores.argmax())
''',
    "tensorrt": _TENSORRT_LINES.format(package="tensorrt"),
    "tensorrt-rtx": _TENSORRT_LINES.format(package="tensorrt_rtx"),
    "torch": '''"""Loads the network and runs it once on random images of shape {shape}."""

from pathlib import Path

import torch

torch.set_num_threads({threads})
network = torch.export.load(Path(__file__).parent / "{file}").module()
images = torch.randn({shape}, generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    (scores,) = network.forward(images)  # without the checks of a call, which take as long as small layers
print("classes", scores.argmax(dim=1).tolist())
''',
}


#: Runtime kind to the packages that its script needs, that of the runtime first.
PACKAGES = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
    "mnn": ("MNN", "numpy"),
    "mnn-sparse": ("MNN", "numpy"),
    "ncnn": ("ncnn", "numpy"),
    "tensorrt": ("tensorrt", "torch"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "torch"),
    "torch": ("torch",),
}


def make_shippable(
    folder: Path, record: Mapping[str, Any], profile: DeviceProfile, int8: Mapping[str, Any] | None = None
) -> None:
    """Adds the runtime's format, ``run.py`` and ``README.md`` to the folder of a finished run.

    Args:
        folder: Where ``hwprune prune`` wrote.
        record: The contents of its ``report.json``.
        profile: The device that is deployed to.
        int8: What is known of the network on 8 bits in the folder below, where there is one: it gets a
            ``run.py`` too.

    Raises:
        VerificationError: If the converted network does not compute the same.
    """
    spec, name = profile.runtime, DEPLOYED_AS.get(profile.runtime.kind, "onnx")
    file = f"{Path(MODEL_FILE).stem}{FORMATS[name][0]}"
    if spec.kind in DEPLOYED_AS:
        convert(folder / MODEL_FILE, name, folder)
    shape = [spec.batch, *record["image_shape"]]
    files = {folder: file}
    if int8 is not None:
        files[folder / INT8_FOLDER] = f"{INT8_STEM}{FORMATS[name][0]}"
    for place, network in files.items():
        lines = RUN_LINES[spec.kind].format(
            file=network, threads=spec.threads, shape=shape, provider=spec.provider or CPU_PROVIDER
        )
        write_text(place / RUN_FILE, lines)
    parts = [_readme(record, profile, file)]
    if int8 is not None:
        parts.append(_about_8_bits(int8, f"{INT8_FOLDER}/{files[folder / INT8_FOLDER]}"))
    write_text(folder / README_FILE, "\n".join(parts))


def _readme(record: Mapping[str, Any], profile: DeviceProfile, file: str) -> str:
    slim, dense, facts = (record[key] for key in ("slim", "dense", "environment"))
    spec, shortfall = profile.runtime, shortfall_line(record)
    install = " ".join(_packages(spec, facts["runtime_version"]))
    wanted = stand_in_for({**record, "hardware": profile.hardware.model_dump()})
    return f"""# {record["model"]} for {record["device"]}

`{file}` runs in {spec.kind} {facts["runtime_version"]}, {spec.precision}, {spec.threads} thread(s), \
batch {spec.batch}; `pip install {install}`, then `python {RUN_FILE}` loads and runs it.

{_input(record, spec.batch)}

| {record["data"]} | dense | this network |
|---|---|---|
| test accuracy | {dense["accuracy"]:.2%} | {slim["accuracy"]:.2%} |
| latency, median (us) | {dense["latency_us"]["median"]:.1f} | {slim["latency_us"]["median"]:.1f} |
| latency, p10 to p90 (us) | {_spread(dense)} | {_spread(slim)} |
| parameters | {dense["params"]:,} | {slim["params"]:,} |

Measured on {facts["cpu"]} ({facts["date"]}){f", not on {wanted}: a stand-in" if wanted else ""}. Dense and
slim were timed alternately: {record["speedup"]:.2f} times as fast; the target was \
{target_label(record["target"])}, {f"and it is missed: {shortfall}" if shortfall else "and it is met"}.

All numbers: `report.json`, `report.html`. `slim/` holds the network for PyTorch:
`hwprune.load("slim", model=fresh_unpruned_model)`.
"""


def _packages(spec: RuntimeSpec, version: str) -> tuple[str, ...]:
    """What to install: the runtime in the version that was measured.

    >>> _packages(RuntimeSpec(kind="ncnn"), "1.0.20261020")
    ('ncnn==1.0.20261020', 'numpy')
    >>> _packages(RuntimeSpec(kind="torch"), "2.13.0+cpu")
    ('torch==2.13.0',)
    >>> _packages(RuntimeSpec(kind="onnxruntime", provider="CUDAExecutionProvider"), "1.31.1")
    ('onnxruntime-gpu==1.31.1',)
    """
    runtime, *others = PACKAGES[spec.kind]
    if spec.provider in GPU_PROVIDERS:  # in a package of its own
        runtime = f"{runtime}-gpu"
    return (f"{runtime}=={version.partition('+')[0]}", *others)


def _input(record: Mapping[str, Any], batch: int) -> str:
    """What the network is fed, and what its scores mean, as far as it is known."""
    shape = f"({', '.join(map(str, (batch, *record['image_shape'])))})"
    done, names = record.get("preprocessing"), record.get("class_names")
    lines = [f"Input: float32 of shape {shape}, channels before rows and columns."]
    if done:
        mean, deviation = (", ".join(f"{value:.6g}" for value in done[key]) for key in ("mean", "deviation"))
        lines.append(f"Pixels {done['pixels']}, minus {mean}, divided by {deviation} (per channel).")
    else:
        lines.append(f"Prepare images as `{record['data']}` does.")
    if names:
        lines.append(f"Scores, one per class: {', '.join(names)}.")
    return "\n".join(lines)


def _about_8_bits(int8: Mapping[str, Any], file: str) -> str:
    before, after = (int8[key]["median"] for key in ("latency_us_fp32", "latency_us"))
    return f"""## On 8 bits

`{file}` is this network quantised on {int8["calibration_images"]} training images; \
`python {INT8_FOLDER}/{RUN_FILE}` loads and runs it.

| both in the runtime, timed alternately | single precision | 8 bits |
|---|---|---|
| test accuracy | {int8["accuracy_fp32"]:.2%} | {int8["accuracy"]:.2%} |
| latency, median (us) | {before:.1f} | {after:.1f} |

All numbers of it: `{INT8_FILE}`.
"""


def _spread(network: Mapping[str, Any]) -> str:
    return f"{network['latency_us']['p10']:.1f} to {network['latency_us']['p90']:.1f}"


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder and below, by its path from there."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
