"""The directory of a comparison: one folder for each finished run, and an index of them that can be lost.

    OUT/runs/ID/         recipe.yaml, metrics.json, history.jsonl, predictions.json and run.json of one run
    OUT/index.sqlite     a table of the runs; made again from the folders when it is missing, damaged or out of date
    OUT/comparison.*     what came out

A run is written under a temporary name and renamed, so that a folder named by an ID is a finished run, whatever
happened. Its run.json says what made it and whether it was done or failed, and why.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kasatune.errors import InputError, OutputError
from kasatune.experiments.compare.run_id import Job
from kasatune.io.atomic import SUFFIX, remove_unfinished, replace_path, write_json
from kasatune.runs.directory import METRICS, check_place

RUNS = "runs"
INDEX = "index.sqlite"
RUN = "run.json"
COMPARISON = "comparison.json"
_COLUMNS = "id, state, task, method, seed, search, score, seconds, bytes, finished, error"
_TABLE = (
    "CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, state TEXT, task TEXT, method TEXT, seed INTEGER, "
    "search INTEGER, score REAL, seconds REAL, bytes INTEGER, finished TEXT, error TEXT)"
)


@dataclass(frozen=True)
class Finished:
    """A run that came to its end.

    Attributes:
        id: of its job.
        state: "done" or "failed".
        folder: where its files are.
        metrics: metrics.json; empty where it failed.
        error: why it failed; None where it did not.
        final: false where the failure has to do with the machine, so that the run is worth another try.
        run: run.json.
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
        """Whether it has scores."""
        return self.state == "done"


def open_folder(out: Path) -> Path:
    """OUT/runs, made where it is missing.

    Raises:
        OutputError: `out` is a file, cannot be written, or holds something that is no comparison.
    """
    check_place(out / RUNS if (out / RUNS).is_dir() else out)
    if out.is_dir() and any(out.iterdir()) and not (out / RUNS).is_dir():
        raise OutputError(f"{out} holds something that is no comparison; give another directory with --out")
    try:
        (out / RUNS).mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise OutputError(f"{out} cannot be made ({fault.strerror}); give another directory with --out") from fault
    return out / RUNS


def read_run(runs: Path, run_id: str) -> Finished | None:
    """The finished run of this ID; None where there is none, or its files are damaged."""
    folder = runs / run_id
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        state = run["state"]
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8")) if state == "done" else {}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Finished(run_id, state, folder, metrics, run.get("error"), run.get("final", True), run)


def unfinished_folder(runs: Path, run_id: str) -> Path:
    """Where a run is written until it is finished; of this process alone."""
    return runs / f".{run_id}.{os.getpid()}{SUFFIX}"


def publish(
    folder: Path, runs: Path, job: Job, *, seconds: float, error: str | None = None, final: bool = True
) -> None:
    """Write run.json into `folder` and give it its name among the finished runs."""
    content = {
        "id": job.id,
        "state": "done" if error is None else "failed",
        "error": error,
        "final": final,
        "seconds": round(seconds, 3),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "identity": job.identity,
    }
    write_json(folder / RUN, content)
    replace_path(folder, runs / job.id)


class Index:
    """index.sqlite, held by one process at a time.

    Args:
        out: the directory of the comparison.

    Raises:
        OutputError: another process is at work on the same comparison.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / INDEX
        self._runs = out / RUNS
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError as fault:
            if _is_held(fault):
                raise OutputError(
                    f"{out}: another process is at work on this comparison; wait for it, or give another directory"
                ) from fault
            for path in (self._path, self._path.with_name(f"{INDEX}-journal")):
                path.unlink(missing_ok=True)
            self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=0.2, isolation_level=None)
        try:
            # Held until the connection is closed, or the process is gone.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute(_TABLE)
            connection.execute(f"SELECT {_COLUMNS} FROM runs LIMIT 1").fetchall()
            connection.execute("COMMIT")
            if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("quick_check failed")
        except BaseException:
            connection.close()
            raise
        return connection

    def synchronize(self) -> None:
        """Bring the index up to what the folders hold, and clear away what killed runs left behind."""
        remove_unfinished(self._runs)
        there = {path.name for path in self._runs.iterdir() if not path.name.startswith(".")}
        known = {row[0] for row in self._connection.execute("SELECT id FROM runs")}
        for run_id in sorted(known - there):
            self._connection.execute("DELETE FROM runs WHERE id = ?", (run_id,))
        for run_id in sorted(there - known):
            found = read_run(self._runs, run_id)
            if found is not None:
                self.add(found)

    def add(self, found: Finished) -> None:
        """Enter a finished run."""
        identity, metrics = found.run.get("identity", {}), found.metrics
        scores = metrics.get("metrics") or {}
        row = (
            found.id,
            found.state,
            identity.get("task", {}).get("name"),
            identity.get("method", {}).get("name"),
            identity.get("training", {}).get("seed"),
            int(bool(identity.get("held_out"))),
            next(iter(scores.values()), None),
            found.run.get("seconds"),
            found.run.get("bytes"),
            found.run.get("finished"),
            found.error,
        )
        self._connection.execute(f"INSERT OR REPLACE INTO runs ({_COLUMNS}) VALUES ({', '.join('?' * len(row))})", row)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every run, the one that finished first first."""
        names = _COLUMNS.split(", ")
        for row in self._connection.execute(f"SELECT {_COLUMNS} FROM runs ORDER BY finished, id"):
            yield dict(zip(names, row, strict=True))

    def close(self) -> None:
        """Let others have it."""
        self._connection.close()


@contextlib.contextmanager
def open_index(out: Path) -> Iterator[Index]:
    """The index of a comparison, in step with its folders.

    Raises:
        OutputError: another process is at work on the same comparison, or the directory cannot be written.
    """
    try:
        index = Index(out)
        index.synchronize()
    except sqlite3.DatabaseError as fault:
        raise OutputError(f"{out / INDEX}: {fault}; make room, or give another directory") from fault
    try:
        yield index
    finally:
        index.close()


def read_comparison(out: Path) -> dict[str, Any]:
    """comparison.json.

    Raises:
        InputError: there is none, or it is damaged.
    """
    try:
        return json.loads((out / COMPARISON).read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise InputError(f"{out} holds no {COMPARISON} that can be read ({fault}); run `kasatune compare`") from fault


def _is_held(fault: sqlite3.DatabaseError) -> bool:
    return getattr(fault, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
