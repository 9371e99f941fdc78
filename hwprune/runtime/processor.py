"""What the processor is, from the standard library alone."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path

#: Instruction sets by what their kernels are chosen for, widest first.
_ISA_FLAGS = (("avx512", "avx512f"), ("avx2", "avx2"), ("neon", "asimd"))


@lru_cache(maxsize=1)
def processor() -> tuple[str, str]:
    """CPU model and instruction set."""
    model, flags = platform.processor() or platform.machine(), ""
    source = Path("/proc/cpuinfo")
    if source.is_file():
        for line in source.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = value
                break
    words = set(flags.split())
    isa = next((name for name, flag in _ISA_FLAGS if flag in words), platform.machine())
    return model, isa


def machine() -> dict[str, str | int]:
    """Processor, operating system and Python."""
    model, isa = processor()
    return {
        "cpu": model,
        "isa": isa,
        "cores": os.cpu_count() or 1,
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
