"""Disk faults: a full and a read-only file system; both are mounted, which needs root."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from soak.bench import Bench, Fault
from soak.cases import Case
from soak.child import start

_FULL = ("No space left", "disk is full", "File too large")
_FILLED = ("train, kasa", "decompose", "export --to lora", "merge")
_RESUMED = ("train, kasa", "compare", "decompose")


def disk_full(bench: Bench, number: int) -> Fault:
    """Run a command on a file system of a few kilobytes; then enlarge it and repeat the command."""
    fault = Fault("disk full", skipped=no_mount())
    for case in () if fault.skipped else [case for name, case in bench.cases.items() if name in _FILLED]:
        for _ in range(number):
            out = bench.new()
            log = out.with_suffix(".log")
            with _disk(out, f"size={bench.draw.randint(4, 120)}k"):
                status = bench.run(case.begin(out / "run"), log)
                if status == 0:
                    continue
                fault.injected += 1
                fault.exit_statuses.add(status)
                text = log.read_text(encoding="utf-8")
                if status != 1 or not any(word in text for word in _FULL) or "Traceback" in text:
                    fault.lost.append(f"{case.name}: exit status {status}: {text[-200:]!r}")
                _remount(out, "size=64m")
                bench.repeat(fault, case, out / "run")
    return fault


def read_only(bench: Bench, number: int) -> Fault:
    """Make the file system read-only before a command starts, or before a killed one resumes."""
    fault = Fault("read-only directory", skipped=no_mount())
    for name, case in {} if fault.skipped else bench.cases.items():
        for below in ("run",) if number == 1 else ("run", "deeper/run"):
            out = bench.new()
            with _disk(out, "size=64m"):
                _refused(bench, fault, case, out, out / below)
        if number > 1 and name in _RESUMED:
            out = bench.new()
            with _disk(out, "size=64m"):
                process = start(case.begin(out / "run"), bench.folder / "log", save_seconds=0.0)
                process.join(bench.draw.uniform(0.3, 0.9) * bench.seconds[name])
                process.kill()
                process.join()
                _refused(bench, fault, case, out, out / "run")
    return fault


@cache
def no_mount() -> str:
    """Return the reason why no file system can be mounted; empty if one can."""
    with tempfile.TemporaryDirectory(prefix="kasatune-soak-") as folder:
        try:
            with _disk(Path(folder) / "disk", "size=4k"):
                return ""
        except (OSError, subprocess.CalledProcessError):
            return "mounting a file system needs root"


def _refused(bench: Bench, fault: Fault, case: Case, place: Path, out: Path) -> None:
    """Run a command on a read-only path, which it must refuse; then make the path writable and repeat the command."""
    arguments = case.again(out)
    if arguments is None:
        return
    log = place.with_suffix(".log")
    _remount(place, "ro")
    before = _content(place)
    status = bench.run(arguments, log)
    fault.injected += 1
    fault.exit_statuses.add(status)
    text = log.read_text(encoding="utf-8")
    if status != 2 or place.name not in text or "Traceback" in text:
        fault.lost.append(f"{case.name}: exit status {status}: {text[-200:]!r}")
    if _content(place) != before:
        fault.lost.append(f"{case.name}: something was written to {place}")
    _remount(place, "rw")
    bench.repeat(fault, case, out)


def _content(place: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


@contextmanager
def _disk(place: Path, option: str) -> Iterator[None]:
    """Mount a file system in memory on `place`."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _remount(place: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(place)], check=True)
