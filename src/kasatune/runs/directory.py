"""The run directory: check, reserve and clear it before a run, read its recipe, and move finished files into it."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kasatune.data.readers.hub import is_pinned_as
from kasatune.errors import InputError, OutputError
from kasatune.io.atomic import remove, replace_path, temporary_path, umask, write_text
from kasatune.io.locks import LOCK, directory_lock, require_unlocked
from kasatune.io.run_layout import RECIPE, WORK, WRITTEN
from kasatune.recipes.schema import Recipe, load_recipe, to_yaml

_LEFT_BY_EARLY_KILL = (LOCK, temporary_path(Path(RECIPE)).name)
_PLACE_ONLY = ("output", "training.report_to")  # keys that may differ when a run is resumed


def check_output(out: Path, recipe: Recipe, *, resume: bool, overwrite: bool, held: bool = False) -> None:
    """Check that a run may be written to `out`, without writing anything.

    Args:
        out: the run directory.
        recipe: recipe of the run.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.
        held: this process already holds the lock of `out`.

    Raises:
        OutputError: `out` is a file, cannot be written, is not empty without `overwrite` or a `resume` of the same
            recipe, or is in use by another process.
    """
    if resume and overwrite:
        raise OutputError("--resume and --overwrite exclude each other: give one")
    try:
        occupied = out.is_dir() and any(path.name not in _LEFT_BY_EARLY_KILL for path in out.iterdir())
    except OSError as fault:
        raise OutputError(f"{out} cannot be read ({fault.strerror}); give another directory") from fault
    check_place(out)
    if not held:
        require_unlocked(out)
    if not occupied or overwrite:
        return
    if not resume:
        raise OutputError(f"{out} is not empty; give another directory, --resume or --overwrite")
    if not (out / RECIPE).is_file():
        raise OutputError(
            f"{out} contains no run to resume ({RECIPE} is missing); give another directory or --overwrite"
        )
    changed = _differences(read_recipe(out), recipe)
    if changed:
        raise OutputError(
            f"{out} was started with another recipe ({'; '.join(changed)}); resume with that one, or give --overwrite"
        )


@contextmanager
def reserved(out: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> Generator[None]:
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
    """Check that `out` is a writable directory, or can be made.

    Raises:
        OutputError: it is a file, or its parent is not writable.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give a directory")
    nearest = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{out} cannot be made: {nearest} is not a directory that you can write to; give another")


def read_recipe(run_dir: Path) -> Recipe:
    """The recipe of a run.

    Raises:
        InputError: `run_dir` is not a run directory, or its recipe is damaged.
    """
    path = run_dir / RECIPE
    if not path.is_file():
        raise InputError(f"{run_dir} is not a run directory: it has no {RECIPE}; give one that `kasatune train` wrote")
    return load_recipe(path)


def begin(out: Path, recipe: Recipe, *, resume: bool) -> None:
    """Write recipe.yaml and make the folder for checkpoints; unless resuming, first remove what an earlier run wrote.

    Files that no run wrote are left in place.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        for name in WRITTEN:
            remove(out / name)
    write_text(out / RECIPE, to_yaml(recipe))
    (out / WORK).mkdir(exist_ok=True)


def publish(staged: Path, out: Path) -> None:
    """Move everything in `staged` into `out`, replacing entries of the same name."""
    mask = umask()
    for source in sorted(staged.iterdir()):
        for path in [source, *source.rglob("*")]:
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)  # safetensors' files are the owner's only
        replace_path(source, out / source.name)
    staged.rmdir()


def _differences(before: Recipe, now: Recipe) -> list[str]:
    old, new = _flat(before), _flat(now)
    # Commits, and a precision, that the recipe leaves open stay those of the first start.
    open_ = [key for key in ("model.revision", "task.revision") if new[key] is None]
    open_ += ["training.precision"] if new["training.precision"] == "auto" else []
    open_ += [key for key in ("task.train", "task.validation") if is_pinned_as(new[key], old[key])]
    return [
        f"{key}: {old.get(key)!r} then, {new.get(key)!r} now"
        for key in {**old, **new}  # a key that is left out has its default, null
        if old.get(key) != new.get(key) and key not in open_
    ]


def _flat(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in recipe.model_dump().items():
        values |= {f"{key}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {key: value}
    return {key: value for key, value in values.items() if key not in _PLACE_ONLY}
