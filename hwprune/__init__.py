"""Hardware-aware compression of PyTorch networks.

See :class:`Compressor` for the two lines that go into a training loop, and ``hwprune --help`` for the command
line.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hwprune.api import load, predict, preview, save, width_predictor
    from hwprune.compressor import Compressor
    from hwprune.device.library import load_profile
    from hwprune.device.profile import DeviceProfile
    from hwprune.errors import HwpruneError
    from hwprune.result import Report, Result
    from hwprune.runtime.export import export
    from hwprune.runtime.timing import Timing, measure
    from hwprune.targets import Groups, Keep, LatencyUs, Speedup
else:
    #: Imported when it is first asked for: torch takes seconds, in which the command line must answer Ctrl-C.
    _MODULES = {
        "api": ("load", "predict", "preview", "save", "width_predictor"),
        "compressor": ("Compressor",),
        "device.library": ("load_profile",),
        "device.profile": ("DeviceProfile",),
        "errors": ("HwpruneError",),
        "result": ("Report", "Result"),
        "runtime.export": ("export",),
        "runtime.timing": ("Timing", "measure"),
        "targets": ("Groups", "Keep", "LatencyUs", "Speedup"),
    }

    def __getattr__(name: str) -> object:
        for module, names in _MODULES.items():
            if name in names:
                globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
                return globals()[name]
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "Compressor",
    "DeviceProfile",
    "Groups",
    "HwpruneError",
    "Keep",
    "LatencyUs",
    "Report",
    "Result",
    "Speedup",
    "Timing",
    "export",
    "load",
    "load_profile",
    "measure",
    "predict",
    "preview",
    "save",
    "width_predictor",
]
