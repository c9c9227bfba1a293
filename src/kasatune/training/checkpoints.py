"""Checkpoints of a run under way: sealed with checksums when they are whole, and found again by them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kasatune.adapters.storage import file_sha256
from kasatune.io.atomic import remove, write_json

SEAL = "complete.json"
KEPT = 2
"""How many there are at most: the latest, and the one before in case the latest is damaged."""


def folder_of(work: Path, step: int) -> Path:
    """The checkpoint of an optimizer step, under the name that the Trainer gives it."""
    return work / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was written."""
    return int(checkpoint.name.rpartition("-")[2])


def seal(checkpoint: Path, best: Path | None, data_sha256: str) -> None:
    """Write the checksums of everything in it, and of the best state so far: with them it is whole.

    Args:
        checkpoint: written to its end.
        best: the file of the best state; None where there is none.
        data_sha256: of the rows that the run is trained on.
    """
    files = {path.name: file_sha256(path) for path in sorted(checkpoint.iterdir()) if path.name != SEAL}
    record = {"files": files, "best": best and {"name": best.name, "sha256": file_sha256(best)}, "data": data_sha256}
    write_json(checkpoint / SEAL, record)


def read_seal(checkpoint: Path) -> dict[str, Any]:
    """What `seal` wrote; {} where it is missing or damaged."""
    try:
        record = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def last_whole(work: Path, tell: Callable[[str], None]) -> Path | None:
    """The latest checkpoint that is as it was written; None where there is none.

    Args:
        work: where the checkpoints are.
        tell: is told of every later one that is not, and why.
    """
    for checkpoint in sorted(work.glob("checkpoint-*"), key=step_of, reverse=True):
        fault = _fault(checkpoint)
        if fault is None:
            return checkpoint
        tell(f"{checkpoint.name} is not used: {fault}")
    return None


def forget_others(work: Path, kept: Path | None) -> None:
    """Remove the checkpoints after `kept`: those that are not whole."""
    for checkpoint in work.glob("checkpoint-*"):
        if kept is None or step_of(checkpoint) > step_of(kept):
            remove(checkpoint)


def best_states(work: Path) -> set[str]:
    """Names of the files of best states that a checkpoint needs."""
    seals = [read_seal(checkpoint) for checkpoint in work.glob("checkpoint-*")]
    return {record["best"]["name"] for record in seals if record.get("best")}


def _fault(checkpoint: Path) -> str | None:
    record = read_seal(checkpoint)
    if not record:
        return "it was not written to its end"
    wanted = {checkpoint / name: digest for name, digest in record["files"].items()}
    if record["best"]:
        wanted[checkpoint.parent / record["best"]["name"]] = record["best"]["sha256"]
    for path, digest in wanted.items():
        try:
            found = file_sha256(path)
        except OSError as error:
            return f"{path.name} cannot be read ({error.strerror})"
        if found != digest:
            return f"{path.name} is not what was written (its SHA-256 differs)"
    return None
