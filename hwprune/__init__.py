"""Hardware-aware compression of PyTorch networks.

See :class:`Compressor` for the two lines that go into a training loop, and ``hwprune --help`` for the command
line.
"""

from hwprune.api import load, predict, save
from hwprune.compressor import Compressor, Report, Result
from hwprune.device.library import load_profile
from hwprune.device.profile import DeviceProfile
from hwprune.errors import HwpruneError
from hwprune.runtime.export import export
from hwprune.runtime.timing import Timing, measure
from hwprune.targets import Groups, Keep, LatencyUs, Speedup

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
    "save",
]
