"""Start a kasatune command in a process forked from one that has imported the libraries, so that it starts at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kasatune.adapter_tools import export as convert  # noqa: F401 - imported once, before the forks
from kasatune.adapters import gguf_export  # noqa: F401
from kasatune.cli.main import run
from kasatune.experiments.compare import compare  # noqa: F401
from kasatune.io.atomic import write_text
from kasatune.training import callback
from kasatune.training.checkpoints import MANIFEST, write_manifest

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def start(
    arguments: Sequence[str],
    log: Path,
    *,
    checksums: Path | None = None,
    save_seconds: float = 600.0,
    **environment: str,
) -> BaseProcess:
    """Start `kasatune ARGUMENTS`; its output is appended to `log`.

    Args:
        arguments: the command line.
        log: the file for standard output and standard error.
        checksums: the directory for the checksums of every checkpoint, one file per step; None to write none.
        save_seconds: the longest time between two checkpoints.
        environment: environment variables of the process.
    """
    process = _CONTEXT.Process(
        target=_run, args=(list(arguments), log, checksums, save_seconds, environment), daemon=True
    )
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 3600.0) -> int:
    """Wait for the process and return its exit status, or the negative number of the signal that ended it.

    Raises:
        TimeoutError: the process does not end in time; it is killed.
    """
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"process {process.pid} did not end within {seconds} s")
    return process.exitcode


def _run(
    arguments: list[str], log: Path, checksums: Path | None, save_seconds: float, environment: dict[str, str]
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.update(environment)
    sys.argv = ["kasatune", *arguments]
    callback.SAVE_SECONDS = save_seconds
    if checksums is not None:
        callback.write_manifest = _recording(checksums)
    status = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _recording(checksums: Path) -> Any:
    def recorded(checkpoint: Path, *rest: Any) -> None:
        write_manifest(checkpoint, *rest)
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        write_text(checksums / f"{checkpoint.name}.json", json.dumps(files))  # atomic: a kill may come here too

    return recorded
