"""The job of a decomposition and its output directory: resumed, withdrawn, checked before anything is written."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kasatune.adapter_tools.resolve import local_model
from kasatune.errors import InputError, ModelError, OutputError
from kasatune.io.atomic import is_temporary, remove, remove_unfinished, write_json
from kasatune.io.model_location import ModelLocation
from kasatune.kasa.config import KasaConfig
from kasatune.kasa.functional import Convention
from kasatune.kasa.truncation.tail_store import INDEX, TAILS, read_index
from kasatune.models.moved_base import base_errors
from kasatune.runs import directory

UNFINISHED = "unfinished.json"
_AS_STORED = "as stored"
_WORDS = ("default", "all-linear")


@dataclass(frozen=True)
class Job:
    """What to decompose, and how; equal jobs on the same checkpoint give equal files.

    Attributes:
        model: hub id, folder, GGUF file or package:NAME.
        rank: r.
        targets: ("default",), ("all-linear",) or endings of layer names.
        convention: decides how many triplets a layer drops.
        dtype: dtype in which the model will be loaded; None for that of the files.
        revision: revision of a model on the hub.
        truncate_by: "magnitude", or "activation", for which the model reads text.
    """

    model: str
    rank: int
    targets: tuple[str, ...] = ("default",)
    convention: Convention = "paper"
    dtype: str | None = None
    revision: str | None = None
    truncate_by: str = "magnitude"

    def as_dict(self) -> dict[str, Any]:
        """The entry in the index."""
        return {**asdict(self), "targets": list(self.targets), "dtype": self.dtype or _AS_STORED}

    def config(self) -> KasaConfig:
        """The configuration of an adapter that drops these tails."""
        return KasaConfig(
            r=self.rank,
            target_modules=_targets(self.targets),
            convention=self.convention,
            truncate_by=self.truncate_by,
        )


def check_output(out: Path, job: Job, *, resume: bool, overwrite: bool) -> None:
    """Check that a decomposition may be written to `out`; writes nothing.

    Raises:
        OutputError: `out` is a file, or is not empty and neither `overwrite` nor `resume` with an equal job is given.
    """
    if resume and overwrite:
        raise OutputError("--resume and --overwrite exclude each other: give one")
    directory.check_place(out)
    # The first process of torchrun may start writing before the others check.
    if overwrite or int(os.environ.get("RANK", "0")) > 0 or not out.is_dir():
        return
    if all(is_temporary(path) for path in out.iterdir()):  # empty, or killed before anything was complete
        return
    if not resume:
        content = "holds an unfinished decomposition" if (out / UNFINISHED).is_file() else "is not empty"
        raise OutputError(f"{out} {content}; give another directory, --resume or --overwrite")
    before = earlier(out)
    changed = [
        f"{key}: {before.get(key)!r} then, {value!r} now"
        for key, value in job.as_dict().items()
        if before.get(key, "magnitude" if key == "truncate_by" else None) != value
    ]
    if changed:
        raise OutputError(
            f"{out} was started with other options ({'; '.join(changed)}); give the same options, or --overwrite"
        )


def earlier(out: Path) -> dict[str, Any]:
    """The job of an earlier, possibly unfinished, decomposition in a directory."""
    if (out / INDEX).is_file():
        return read_index(out)
    try:
        job = json.loads((out / UNFINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        job = None
    if isinstance(job, dict):
        return job
    raise OutputError(f"{out} holds no decomposition to resume; give another directory, or --overwrite")


def begin(out: Path, job: Job, *, keep: bool) -> None:
    """Prepare the directory: empty it unless `keep`, and note the job."""
    out.mkdir(parents=True, exist_ok=True)
    if not keep:
        remove(out / INDEX)
    write_json(out / UNFINISHED, job.as_dict())  # first, so that a killed command can be resumed
    if not keep:
        remove(out / TAILS)
    (out / TAILS).mkdir(exist_ok=True)


def withdraw(out: Path) -> None:
    """Remove the directory's content if no tail was finished."""
    if any((out / TAILS).glob("[!.]*")):
        return
    for name in (UNFINISHED, TAILS):
        remove(out / name)
    if not any(out.iterdir()):
        out.rmdir()


def clear_abandoned(tails: Path, began: float) -> None:
    """Remove temporary files of processes killed before this command began, once every tail is written."""
    remove_unfinished(tails, before=began)


def _targets(names: Sequence[str]) -> list[str] | str | None:
    """KasaConfig's target_modules."""
    words = [name for name in names if name in _WORDS]
    if words and len(names) > 1:
        raise InputError(
            f"--target {words[0]} cannot be combined with others, got {', '.join(names)}; give it alone, or names of "
            "layers"
        )
    if words:
        return None if words == ["default"] else words[0]
    return list(names)


def locate(job: Job) -> ModelLocation:
    """The model of a job.

    Raises:
        ModelError: it cannot be found.
    """
    try:
        with base_errors(None, "MODEL", remedy=""):
            return local_model(job.model, job.revision)
    except ModelError as fault:
        raise ModelError(str(fault).replace("model.name", "MODEL", 1)) from fault
