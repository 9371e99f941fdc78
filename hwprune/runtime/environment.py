"""What this machine is, and whether it is the one a profile was measured on."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import importlib.util
from pathlib import Path

from hwprune.device.library import find_profiles
from hwprune.device.profile import DeviceProfile, Hardware, RuntimeSpec
from hwprune.errors import ProfileError, RuntimeUnavailableError
from hwprune.runtime.base import REGISTRY, on_gpu
from hwprune.runtime.processor import machine, processor

#: Packages whose versions a measurement depends on or a report names.
PACKAGES = (
    *("hwprune", "torch", "onnx", "onnxruntime", "openvino", "MNN", "ncnn", "pnnx", "numpy"),
    *("onnxruntime-gpu", "tensorrt", "tensorrt_rtx"),
)


def versions() -> dict[str, str]:
    """Installed versions of the packages that matter."""
    found = {package: _installed(package) for package in PACKAGES}
    return {package: version for package, version in found.items() if version}


def _installed(package: str) -> str:
    """The installed version of a package; nothing where it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    if importlib.util.find_spec(package) is None:
        return ""
    # Several distributions can hold the same package: one for every CUDA, say.
    names = importlib.metadata.packages_distributions().get(package, [])
    return next((importlib.metadata.version(name) for name in names), "")


def environment() -> dict[str, str | int]:
    """Machine and versions, as every measurement carries them."""
    return {
        **machine(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **versions(),
    }


def hardware_for(spec: RuntimeSpec) -> Hardware:
    """What runs networks of a profile here: the processor, or the GPU with its multiprocessors as cores.

    Raises:
        RuntimeUnavailableError: If it is a GPU and there is none.
    """
    if not on_gpu(spec):
        facts = machine()
        model = str(facts["cpu"])
        return Hardware(
            vendor=model.split()[0], model=model, isa=str(facts["isa"]), cores=int(facts["cores"])
        )
    import torch

    if not torch.cuda.is_available():
        raise RuntimeUnavailableError(
            "there is no GPU here",
            where="runtime of the profile",
            got=f"none that PyTorch {torch.__version__} sees",
        )
    gpu = torch.cuda.get_device_properties(0)
    isa = f"sm_{gpu.major}{gpu.minor}"
    return Hardware(vendor="NVIDIA", model=gpu.name, isa=isa, cores=gpu.multi_processor_count)


def same_hardware(profile: DeviceProfile) -> tuple[bool, str]:
    """Whether this machine is the one that ``profile`` was measured on.

    Returns:
        The answer, and where it is no, the first difference in words.
    """
    kind = profile.runtime.kind
    version = _installed(REGISTRY[kind][2]) if kind in REGISTRY else ""
    try:
        hardware = hardware_for(profile.runtime)
    except RuntimeUnavailableError as error:
        return False, error.what
    here = {"isa": hardware.isa, "cpu": hardware.model, "cores": hardware.cores, kind: version}
    wanted = {
        "isa": profile.hardware.isa,
        "cpu": profile.hardware.model,
        # A template is for machines with any number of cores.
        "cores": 0 if profile.provenance.source == "template" else profile.hardware.cores,
        kind: profile.runtime.version,
    }
    for fact, value in wanted.items():
        if value and str(here[fact]) != str(value):
            return False, f"{fact} is {here[fact] or 'unknown'} here, {value} in the profile"
    return True, ""


def local_profile(search: Path | None = None) -> DeviceProfile:
    """The profile of the CPU runtime that fits this machine best.

    Among the ONNX Runtime profiles with this machine's instruction set, one measured on this very
    hardware comes first, single-threaded fp32 next. Where there is none, a profile for any instruction set
    is taken whose channels leave.

    Raises:
        ProfileError: If no profile has this machine's instruction set, and none is for any.
    """
    _, isa = processor()
    profiles = [profile for profile in find_profiles(search) if profile.runtime.kind == "onnxruntime"]
    fitting = [profile for profile in profiles if profile.hardware.isa == isa] or [
        profile for profile in profiles if not profile.hardware.isa and profile.granularity == "channel"
    ]
    if not fitting:
        raise ProfileError(
            "no profile fits this machine",
            expected=f"an onnxruntime profile with isa {isa}",
            hint="make one with: hwprune profile build --runtime onnxruntime --out DIR",
        )
    return min(
        fitting,
        key=lambda profile: (
            profile.latency.table is None or not same_hardware(profile)[0],
            profile.runtime.precision != "fp32",
            profile.runtime.threads,
            profile.name,
        ),
    )
