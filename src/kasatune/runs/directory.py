"""The files of a run: who may write where, and nothing that is half written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kasatune.data.readers.hub import is_pinned_as
from kasatune.errors import InputError, OutputError
from kasatune.io.atomic import finite, remove, replace_path, temporary_path, umask, write_text
from kasatune.io.locks import LOCK, directory_lock, require_unlocked
from kasatune.recipes.schema import Recipe, load_recipe, to_yaml

RECIPE = "recipe.yaml"
METRICS = "metrics.json"
HISTORY = "history.jsonl"
PREDICTIONS = "predictions.json"
SPECTRUM = "spectrum.json"
TENSORBOARD = "tensorboard"  # only where training.report_to names it
JUDGE = "judge"  # only where `kasatune evaluate --judge` was called
WORK = "unfinished"  # checkpoints of a run that goes on; gone when it is done

_WRITTEN = (
    RECIPE,
    METRICS,
    HISTORY,
    PREDICTIONS,
    SPECTRUM,
    WORK,
    "adapter",
    "kasa",
    "checkpoint",
    JUDGE,
    "report.html",
    TENSORBOARD,
)
_KILLED_AT_ONCE = (
    LOCK,
    temporary_path(Path(RECIPE)).name,
)  # what a run leaves that was killed before anything was finished
_METRICS_FORM: Mapping[str, Callable[[Any], bool]] = {
    "kind": lambda value: value in ("classification", "regression", "generation"),
    "split": lambda value: isinstance(value, str),
    "label_names": lambda value: value is None or (isinstance(value, list) and all(isinstance(n, str) for n in value)),
    "text_fields": lambda value: value in (1, 2),
    "metrics": lambda value: isinstance(value, dict),
}
_PLACE_ONLY = ("output", "training.report_to")  # a resumed run may be told to go elsewhere with these


def check_output(out: Path, recipe: Recipe, *, resume: bool, overwrite: bool, held: bool = False) -> None:
    """A run may be written to `out`; writes nothing itself.

    Args:
        out: the run directory.
        recipe: of the run.
        resume: go on with what it holds.
        overwrite: begin anew in its place.
        held: this process holds its lock already.

    Raises:
        OutputError: `out` is a file, cannot be written, or holds something, and neither `overwrite` nor a `resume` of
            the same recipe says that this is as it should be; or another process is at work there.
    """
    if resume and overwrite:
        raise OutputError("--resume and --overwrite exclude each other: give one")
    try:
        occupied = out.is_dir() and any(path.name not in _KILLED_AT_ONCE for path in out.iterdir())
    except OSError as fault:
        raise OutputError(f"{out} cannot be read ({fault.strerror}); give another directory") from fault
    check_place(out)
    if not held:
        require_unlocked(out)
    if not occupied or overwrite:
        return
    if not resume:
        raise OutputError(f"{out} holds something already; give another directory, --resume or --overwrite")
    if not (out / RECIPE).is_file():
        raise OutputError(f"{out} holds no run to resume ({RECIPE} is missing); give another directory or --overwrite")
    changed = _differences(read_recipe(out), recipe)
    if changed:
        raise OutputError(
            f"{out} was begun with another recipe ({'; '.join(changed)}); resume with the same one, or give --overwrite"
        )


@contextmanager
def reserved(out: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Check that a run may be written to `out`, make the directory and lock it.

    Directories that were made are removed at the end if they are still empty.

    Args:
        out: the run directory.
        recipe: recipe of the run.
        resume: see `check_output`.
        overwrite: see `check_output`.

    Raises:
        OutputError: see `check_output`.
        OSError: the directory cannot be made.
    """
    check_output(out, recipe, resume=resume, overwrite=overwrite)
    missing = [path for path in (out, *out.absolute().parents) if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    try:
        with directory_lock(out):
            # Another process may have started and finished a run between the check and the lock.
            check_output(out, recipe, resume=resume, overwrite=overwrite, held=True)
            yield
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def check_place(out: Path) -> None:
    """`out` is a directory that can be written, or one can be made there.

    Raises:
        OutputError: it is a file, or lies where nothing can be written.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give a directory")
    nearest = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{out} cannot be made: {nearest} is not a directory that you can write to")


def read_recipe(run_dir: Path) -> Recipe:
    """The recipe that a run was made with.

    Raises:
        InputError: `run_dir` is no run directory, or its recipe is damaged.
    """
    path = run_dir / RECIPE
    if not path.is_file():
        raise InputError(
            f"{run_dir} is not a run directory: it holds no {RECIPE}; give one that `kasatune train` wrote"
        )
    return load_recipe(path)


def read_metrics(run_dir: Path) -> dict[str, Any]:
    """metrics.json of a run.

    Raises:
        InputError: missing or damaged: the run has not come so far.
    """
    path = run_dir / METRICS
    if not path.is_file():
        raise InputError(f"{run_dir} holds no {METRICS}: its training was not finished; use `kasatune train --resume`")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise InputError(f"{path} is damaged ({fault}); train again") from fault
    if not isinstance(metrics, dict):
        raise InputError(f"{path} holds no JSON object; train again")
    wrong = [key for key, is_right in _METRICS_FORM.items() if key in metrics and not is_right(metrics[key])]
    if wrong or not {"kind", "split"} <= metrics.keys():
        raise InputError(
            f"{path} is damaged ({', '.join(wrong) or 'kind or split'} is not as a run writes it); train again"
        )
    return metrics


def is_finished(run_dir: Path) -> bool:
    """Whether a run came to its end, neither interrupted nor diverged."""
    if not (run_dir / METRICS).is_file():
        return False
    metrics = read_metrics(run_dir)
    return not metrics.get("interrupted") and not metrics.get("diverged")


def begin(out: Path, recipe: Recipe, *, resume: bool) -> None:
    """Make `out` ready: recipe.yaml in place, and, unless it is resumed, nothing left of an earlier run.

    What an earlier run did not write is left where it is.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        for name in _WRITTEN:
            remove(out / name)
    write_text(out / RECIPE, to_yaml(recipe))
    (out / WORK).mkdir(exist_ok=True)


def publish(staged: Path, out: Path) -> None:
    """Move everything in `staged` into `out`, in the place of what has the same name there."""
    mask = umask()
    for source in sorted(staged.iterdir()):
        for path in [source, *source.rglob("*")]:
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)  # safetensors lets the owner alone read
        replace_path(source, out / source.name)
    staged.rmdir()


class History:
    """history.jsonl: one event a line, each written out before the run goes on.

    Args:
        path: the file.
        writes: false for a process that shares the run with the one that writes.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self._path = path
        self._writes = writes

    def add(self, event: str, **values: Any) -> None:
        """Append one event."""
        if not self._writes:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **finite(values)}, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()

    def events(self) -> list[dict[str, Any]]:
        """All events so far; a line that was cut off by a kill is left out."""
        if not self._path.is_file():
            return []
        found = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def rewind(self, step: int) -> None:
        """Drop the events after optimizer step `step`, which a resumed run makes again."""
        kept = [event for event in self.events() if event.get("step", 0) <= step]
        if self._writes:
            write_text(self._path, "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in kept))


def _differences(before: Recipe, now: Recipe) -> list[str]:
    old, new = _flat(before), _flat(now)
    # The commits that were found then hold on.
    open_ = [key for key in ("model.revision", "task.revision") if new[key] is None]
    open_ += [key for key in ("task.train", "task.validation") if is_pinned_as(new[key], old[key])]
    return [
        f"{key}: {old[key]!r} then, {new.get(key)!r} now"
        for key in old
        if old[key] != new.get(key) and key not in open_
    ]


def _flat(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in recipe.model_dump().items():
        values |= {f"{key}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {key: value}
    return {key: value for key, value in values.items() if key not in _PLACE_ONLY}
