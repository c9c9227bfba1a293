"""A kasatune command in a process of its own that has everything imported already, so that it starts at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kasatune.adapter_tools import export as convert  # noqa: F401 - imported here once for all
from kasatune.adapters import gguf_export  # noqa: F401
from kasatune.cli.main import run
from kasatune.experiments.compare import compare  # noqa: F401
from kasatune.io.atomic import write_text
from kasatune.training import callback
from kasatune.training.checkpoints import MANIFEST, write_manifest

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def start(
    arguments: Sequence[str], log: Path, *, seals: Path | None = None, save_seconds: float = 600.0, **environment: str
) -> BaseProcess:
    """Begin `kasatune ARGUMENTS`, output appended to `log`.

    Args:
        arguments: of the command line.
        log: gets standard output and standard error.
        seals: gets the checksums of every checkpoint, one file a step; None for nobody.
        save_seconds: how long ago the last checkpoint may be.
        environment: variables of the process.
    """
    process = _CONTEXT.Process(target=_run, args=(list(arguments), log, seals, save_seconds, environment), daemon=True)
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 3600.0) -> int:
    """Wait for the end; its exit status, minus the number of the signal that ended it.

    Raises:
        TimeoutError: it does not end.
    """
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"process {process.pid} did not end within {seconds} s")
    return process.exitcode


def _run(arguments: list[str], log: Path, seals: Path | None, save_seconds: float, environment: dict[str, str]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.environ.update(environment)
    sys.argv = ["kasatune", *arguments]
    callback.SAVE_SECONDS = save_seconds
    if seals is not None:
        callback.write_manifest = _recording(seals)
    status = run(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _recording(seals: Path) -> Any:
    def recorded(checkpoint: Path, *rest: Any) -> None:
        write_manifest(checkpoint, *rest)
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        write_text(seals / f"{checkpoint.name}.json", json.dumps(files))  # a kill may come here too

    return recorded
