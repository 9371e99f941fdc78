"""What makes a variant's folder ready to ship: the runtime's own format, a README and lines that run it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hwprune.device.profile import RuntimeSpec
from hwprune.files import write_text
from hwprune.output_folder import MODEL_FILE
from hwprune.runtime.formats import FORMATS, convert

RUN_FILE, README_FILE = "run.py", "README.md"
#: Runtime kind to the format it deploys, where that is not ONNX.
DEPLOYED_AS = {name: name for name in ("openvino", "mnn", "mnn-sparse", "ncnn", "torch")}
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
#: Runtime kind to a script that loads ``{file}`` with ``{threads}`` threads and runs it on random images.
RUN_LINES = {
    "onnxruntime": '''"""Loads the network and runs it once on random images of shape {shape}."""

from pathlib import Path

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {threads}
model = Path(__file__).parent / "{file}"
session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
images = np.random.default_rng(0).standard_normal({shape}).astype(np.float32)
(scores,) = session.run(None, {{session.get_inputs()[0].name: images}})
print("classes", scores.argmax(axis=1))
''',
    "openvino": '''"""Loads the network and runs it once on random images of shape {shape}."""

from pathlib import Path

import numpy as np
import openvino

options = {{"INFERENCE_NUM_THREADS": {threads}, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}}
network = openvino.Core().read_model(str(Path(__file__).parent / "{file}"))
network.reshape({shape})
compiled = openvino.Core().compile_model(network, "CPU", options)
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


def make_shippable(folder: Path, record: Mapping[str, Any], spec: RuntimeSpec) -> None:
    """Adds the runtime's format, ``run.py`` and ``README.md`` to the folder of a finished run.

    Args:
        folder: Where ``hwprune prune`` wrote.
        record: The contents of its ``report.json``.
        spec: The runtime that is deployed.

    Raises:
        VerificationError: If the converted network does not compute the same.
    """
    file = MODEL_FILE
    if spec.kind in DEPLOYED_AS:
        name = DEPLOYED_AS[spec.kind]
        convert(folder / MODEL_FILE, name, folder)
        file = Path(MODEL_FILE).stem + FORMATS[name][0]
    shape = [spec.batch, *record["image_shape"]]
    lines = RUN_LINES[spec.kind].format(file=file, threads=spec.threads, shape=shape)
    write_text(folder / RUN_FILE, lines)
    write_text(folder / README_FILE, _readme(record, spec, file))


def _readme(record: Mapping[str, Any], spec: RuntimeSpec, file: str) -> str:
    slim, dense, target, facts = (record[key] for key in ("slim", "dense", "target", "environment"))
    return f"""# {record["model"]} for {record["device"]}

`{file}` runs in {spec.kind} {facts["runtime_version"]}, {spec.precision}, {spec.threads} thread(s), \
batch {spec.batch}; `python {RUN_FILE}` loads and runs it.

| {record["data"]} | dense | this network |
|---|---|---|
| test accuracy | {dense["accuracy"]:.2%} | {slim["accuracy"]:.2%} |
| latency, median (us) | {dense["latency_us"]["median"]:.1f} | {slim["latency_us"]["median"]:.1f} |
| latency, p10 to p90 (us) | {_spread(dense)} | {_spread(slim)} |
| parameters | {dense["params"]:,} | {slim["params"]:,} |

Measured on {facts["cpu"]} ({facts["date"]}), dense and slim alternately: {record["speedup"]:.2f} times as
fast; the target was {target["kind"]} {target["value"]:g}. All numbers: `report.json`, `report.html`.
`slim/` holds the network for PyTorch: `hwprune.load("slim", model=fresh_unpruned_model)`.
"""


def _spread(network: Mapping[str, Any]) -> str:
    return f"{network['latency_us']['p10']:.1f} to {network['latency_us']['p90']:.1f}"


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder and below, by its path from there."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
