"""Which inference runtimes there are, as names alone: what profiles may say, and what implements it."""

from __future__ import annotations

#: Runtime kind to the module and class that implement it, and the package and extra they need. The module
#: is imported when the runtime is asked for, so that an absent package is no obstacle to the others.
REGISTRY = {
    "mnn": ("hwprune.runtime.mnn", "Mnn", "MNN", "hwprune[mnn]"),
    "mnn-sparse": ("hwprune.runtime.mnn", "MnnSparse", "MNN", "hwprune[mnn]"),
    "ncnn": ("hwprune.runtime.ncnn", "Ncnn", "ncnn", "hwprune[ncnn]"),
    "onnxruntime": ("hwprune.runtime.onnxruntime", "OnnxRuntime", "onnxruntime", "hwprune"),
    "openvino": ("hwprune.runtime.openvino", "OpenVino", "openvino", "hwprune[openvino]"),
    "tensorrt": ("hwprune.runtime.tensorrt", "TensorRt", "tensorrt", "hwprune[tensorrt]"),
    "tensorrt-rtx": ("hwprune.runtime.tensorrt", "TensorRtRtx", "tensorrt_rtx", "hwprune[tensorrt-rtx]"),
    "torch": ("hwprune.runtime.torch_eager", "TorchEager", "torch", "hwprune"),
}
#: Execution providers of ONNX Runtime: the usual one, and those on a GPU, which run half precision besides.
CPU_PROVIDER = "CPUExecutionProvider"
GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
#: Runtime kind to the providers that a profile may name; none where nothing is said.
PROVIDERS = {"onnxruntime": (CPU_PROVIDER, *GPU_PROVIDERS)}
