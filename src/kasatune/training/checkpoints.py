"""Checkpoints of an unfinished run: folders, manifests with checksums, and the latest valid one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kasatune.adapters.adapter_files import file_sha256
from kasatune.io.atomic import remove, write_json

MANIFEST = "complete.json"
MAX_CHECKPOINTS = 2
"""Number of checkpoints to keep: the latest, and the one before it in case the latest is damaged."""


def checkpoint_folder(work: Path, step: int) -> Path:
    """The checkpoint of an optimizer step, named as transformers' Trainer names it."""
    return work / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def write_manifest(
    checkpoint: Path, best: Path | None, data_sha256: str, base_fingerprint: str = "", adapter_sha256: str | None = None
) -> None:
    """Write the SHA-256 of every file of a checkpoint; a checkpoint without a manifest is incomplete.

    Args:
        checkpoint: its folder, with every file written.
        best: the file with the best state so far, which the checkpoint refers to; None if there is none.
        data_sha256: hash of the training data.
        base_fingerprint: fingerprint of the base model.
        adapter_sha256: hash of the adapter that training continues from; None for a new one.
    """
    files = {path.name: file_sha256(path) for path in sorted(checkpoint.iterdir()) if path.name != MANIFEST}
    best_entry = best and {"name": best.name, "sha256": file_sha256(best)}
    content = {"files": files, "best": best_entry, "data": data_sha256, "base": base_fingerprint or None}
    content |= {"adapter": adapter_sha256} if adapter_sha256 else {}
    write_json(checkpoint / MANIFEST, content)


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; {} if it is missing or cannot be parsed."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def latest_valid(work: Path, report: Callable[[str], None]) -> Path | None:
    """The latest checkpoint whose files match its manifest; None if there is none.

    Args:
        work: the folder with the checkpoints.
        report: called with a message for every later checkpoint that is rejected, with the reason.
    """
    for checkpoint in sorted(work.glob("checkpoint-*"), key=step_of, reverse=True):
        defect = _defect(checkpoint)
        if defect is None:
            return checkpoint
        report(f"{checkpoint.name} is not used: {defect}")
    return None


def remove_later(work: Path, latest: Path | None) -> None:
    """Remove the checkpoints after `latest`, which are invalid; all of them if it is None."""
    for checkpoint in work.glob("checkpoint-*"):
        if latest is None or step_of(checkpoint) > step_of(latest):
            remove(checkpoint)


def referenced_best_states(work: Path) -> set[str]:
    """Names of the best-state files that a checkpoint refers to."""
    manifests = [read_manifest(checkpoint) for checkpoint in work.glob("checkpoint-*")]
    return {manifest["best"]["name"] for manifest in manifests if manifest.get("best")}


def _defect(checkpoint: Path) -> str | None:
    manifest = read_manifest(checkpoint)
    if not manifest:
        return "it is incomplete (its manifest is missing or damaged)"
    expected = {checkpoint / name: digest for name, digest in manifest["files"].items()}
    if manifest["best"]:
        expected[checkpoint.parent / manifest["best"]["name"]] = manifest["best"]["sha256"]
    for path, digest in expected.items():
        try:
            actual = file_sha256(path)
        except OSError as error:
            return f"{path.name} cannot be read ({error.strerror})"
        if actual != digest:
            return f"{path.name} has changed since it was written (its SHA-256 differs)"
    return None
