"""The environment of a run: package versions, processor and peak memory."""

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
_PROCESSORS = Path("/proc/cpuinfo")
_MEMORY = Path("/proc/meminfo")
_RESET = Path("/proc/self/clear_refs")  # 5 resets the largest resident size (VmHWM)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect a result."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def available_memory() -> int | None:
    """Bytes of the machine's memory that a process can still take; None where the system does not report it."""
    try:
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text(encoding="ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def reset_peak_memory() -> None:
    """Reset the peak memory, where the system allows it, after returning unused memory to the system."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    gc.collect()
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL(None).malloc_trim(0)
            _RESET.write_text("5", encoding="ascii")
        except (AttributeError, OSError):  # another C library; a file that cannot be written
            return


def peak_memory() -> int | None:
    """Peak memory in bytes since `reset_peak_memory`: of the GPU if there is one, else the process's resident size.

    Where the system cannot reset it, the peak since the process began; None where the system does not report it.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if _STATUS.is_file():
        peak_kb = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
        if peak_kb:
            return int(peak_kb[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def processor() -> str:
    """The processor's name as the system reports it."""
    name = _processor_entry("model name")
    return (platform.processor() or platform.machine()) if name is None else name


def processor_features() -> frozenset[str]:
    """Instruction sets of the processor, such as "avx512_bf16", as Linux names them; none on other systems."""
    return frozenset((_processor_entry("flags") or "").split())


def _processor_entry(name: str) -> str | None:
    try:
        lines = _PROCESSORS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.partition(":")[0].strip() == name), None)
