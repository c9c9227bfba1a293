"""What a run says of the machine and the software that it ran on."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("kasatune", "torch", "transformers", "peft", "accelerate", "numpy", "tokenizers", "safetensors")
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")  # 5 resets the largest resident size (VmHWM)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def reset_peak_memory() -> None:
    """Forget the peak so far, where the system lets one, with what earlier work no longer needs given back to it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    gc.collect()
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL(None).malloc_trim(0)
            _RESET.write_text("5", encoding="ascii")
        except (AttributeError, OSError):  # another C library; a system that keeps the file closed
            return


def peak_memory() -> int | None:
    """Bytes: the GPU's peak since `reset_peak_memory`, or else the process's largest resident size since then.

    Where the system does not reset it, the largest since the process began; None where it does not tell.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if _STATUS.is_file():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
