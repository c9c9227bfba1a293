"""The directory of a comparison: one folder per finished run, a lock, and the reports.

    OUT/runs/ID/         recipe.yaml, metrics.json, history.jsonl, predictions.json and run.json of one run
    OUT/comparison.*     the results; see `comparison_file`

A run is written under a temporary name and renamed when it is finished. A folder named by a run ID is therefore always
a finished run, and the listing of OUT/runs is the only index that is needed to resume. run.json records what produced
the run, and whether it succeeded or why it failed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kasatune.errors import InputError, OutputError
from kasatune.experiments.compare.run_id import PlannedRun
from kasatune.io.atomic import SUFFIX, remove, remove_unfinished, replace_path, write_json
from kasatune.io.locks import directory_lock
from kasatune.io.run_layout import METRICS
from kasatune.runs.directory import check_place

RUNS = "runs"
RUN = "run.json"
_OLD_INDEX = ("index.sqlite", "index.sqlite-journal")  # written by version 0.1; the folders hold everything it held


@dataclass(frozen=True)
class FinishedRun:
    """A run that ended, with or without scores.

    Attributes:
        id: ID of the planned run.
        state: "done" or "failed".
        folder: directory of its files.
        metrics: content of metrics.json; empty if the run failed.
        error: reason of the failure, or None.
        final: False if the failure may be the machine's fault, so that the next command tries the run again.
        run: content of run.json.
    """

    id: str
    state: str
    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    final: bool = True
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether the run has scores."""
        return self.state == "done"


def make_runs_folder(out: Path) -> Path:
    """Return OUT/runs, creating it if needed.

    Raises:
        OutputError: `out` is a file, is not writable, or holds something other than a comparison.
    """
    check_place(out / RUNS if (out / RUNS).is_dir() else out)
    if out.is_dir() and any(out.iterdir()) and not (out / RUNS).is_dir():
        raise OutputError(f"{out} is not empty and holds no comparison; choose another directory with --out")
    try:
        (out / RUNS).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise OutputError(f"{out} cannot be created ({fault.strerror}); choose another directory with --out") from fault
    return out / RUNS


def existing_runs_folder(out: Path) -> Path:
    """Return OUT/runs of an existing comparison.

    Raises:
        InputError: there is none.
    """
    if not (out / RUNS).is_dir():
        raise InputError(f"{out} holds no comparison; run it first, without --report-only")
    return out / RUNS


@contextmanager
def locked_comparison(out: Path) -> Generator[None]:
    """Lock a comparison for this process, and delete what killed processes left unfinished.

    Raises:
        OutputError: another process is working on the same comparison, or the directory cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(directory_lock(out, what="comparison"))
        except OSError as fault:
            raise OutputError(
                f"{out} cannot be locked ({fault.strerror}); free some space, or choose another directory with --out"
            ) from fault
        remove_unfinished(out / RUNS)
        for name in _OLD_INDEX:
            remove(out / name)
        yield


def read_run(runs: Path, run_id: str) -> FinishedRun | None:
    """Return the finished run with this ID; None if there is none or its files are damaged."""
    folder = runs / run_id
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        state = run["state"]
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8")) if state == "done" else {}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return FinishedRun(run_id, state, folder, metrics, run.get("error"), run.get("final", True), run)


def unfinished_folder(runs: Path, run_id: str) -> Path:
    """The temporary folder of a run, unique to this process."""
    return runs / f".{run_id}.{os.getpid()}{SUFFIX}"


def publish(
    folder: Path, runs: Path, run: PlannedRun, *, seconds: float, error: str | None = None, final: bool = True
) -> None:
    """Write run.json into `folder` and rename the folder to the run's ID."""
    content = {
        "id": run.id,
        "state": "done" if error is None else "failed",
        "error": error,
        "final": final,
        "seconds": round(seconds, 3),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "identity": run.identity,
    }
    write_json(folder / RUN, content)
    replace_path(folder, runs / run.id)
