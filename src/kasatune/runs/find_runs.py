"""Find the runs and comparisons below a folder, with the state, score and cost of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kasatune.data.tasks.table import TASKS
from kasatune.io.locks import LOCK, lock_holder
from kasatune.io.run_layout import HISTORY, METRICS, RECIPE, WORK
from kasatune.recipes.yaml_io import parse_yaml, read_recipe_text

COMPARISON = "comparison.json"
MOST = 500
_DEPTH = 4
_LARGEST_BYTES = 8 << 20

State = Literal["finished", "running", "stopped", "diverged", "damaged"]


@dataclass(frozen=True)
class RunSummary:
    """One run or comparison.

    Attributes:
        path: its directory, relative to the folder that was searched.
        kind: "run" or "comparison".
        state: "running" while a process holds its lock.
        task, method, model: names in its recipe; of a comparison, lists of them.
        score_name: the headline score of the task; "" if unknown.
        score: its value; None before there is one.
        loss: validation loss of the saved state; None if unknown.
        seconds: time of all phases; None if unknown.
        changed: time of the last change, in seconds since the epoch.
    """

    path: str
    kind: Literal["run", "comparison"]
    state: State
    task: str = ""
    method: str = ""
    model: str = ""
    score_name: str = ""
    score: float | None = None
    loss: float | None = None
    seconds: float | None = None
    changed: float = 0.0


def find_runs(folder: Path, *, most: int = MOST) -> list[RunSummary]:
    """The runs and comparisons below a folder, newest first; those inside a comparison are left out.

    Args:
        folder: searched four levels deep, without hidden folders and symbolic links.
        most: the largest number of results.
    """
    runs = [_summary(folder, path) for path in _directories(folder, _DEPTH)]
    return sorted(runs, key=lambda run: -run.changed)[:most]


def run_state(run_dir: Path) -> State:
    """The state of a run directory that holds a recipe."""
    if lock_holder(run_dir) is not None:
        return "running"
    if not (run_dir / METRICS).is_file():
        return "stopped"
    metrics = _json(run_dir / METRICS)
    if metrics is None:
        return "damaged"
    if metrics.get("diverged"):
        return "diverged"
    return "stopped" if metrics.get("interrupted") else "finished"


def _directories(folder: Path, depth: int) -> Iterator[Path]:
    """The directories of runs and comparisons, each without those inside it."""
    try:
        entries = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return
    for path in entries:
        if path.name.startswith("."):
            continue
        if _is_comparison(path) or ((path / RECIPE).is_file() and _is_run(path)):
            yield path
        elif depth > 1:
            yield from _directories(path, depth - 1)


def _is_comparison(path: Path) -> bool:
    """Whether a folder holds a comparison, which may be in its first run."""
    if (path / COMPARISON).is_file():
        return True
    try:
        return (path / "runs").is_dir() and (
            (path / LOCK).exists() or any((run / "run.json").is_file() for run in (path / "runs").iterdir())
        )
    except OSError:
        return False


def _is_run(path: Path) -> bool:
    """Whether a folder with a recipe.yaml is a run, not a folder with a recipe in it."""
    return any((path / name).exists() for name in (METRICS, HISTORY, WORK))


def _summary(folder: Path, path: Path) -> RunSummary:
    shown = path.relative_to(folder).as_posix()
    try:
        changed = max((path / name).stat().st_mtime for name in _DATED if (path / name).exists())
    except (OSError, ValueError):
        changed = 0.0
    if _is_comparison(path):
        return _comparison(path, shown, changed)
    try:
        recipe = parse_yaml(read_recipe_text(path / RECIPE))
        task, method, model = (str(recipe[section]["name"]) for section in ("task", "method", "model"))
    except (OSError, ValueError, KeyError, TypeError):
        return RunSummary(shown, "run", "damaged", changed=changed)
    metrics = _json(path / METRICS) or {}
    scores, info = metrics.get("metrics"), TASKS.get(task)
    scores = scores if isinstance(scores, dict) else {}
    name = info.headline if info is not None and info.headline in scores else next(iter(scores), "")
    phases = metrics.get("seconds")
    return RunSummary(
        path=shown,
        kind="run",
        state=run_state(path),
        task=task,
        method=method,
        model=model,
        score_name=name,
        score=_number(scores.get(name)),
        loss=_number(scores.get("loss")),
        seconds=sum(filter(None, map(_number, phases.values()))) if isinstance(phases, dict) else None,
        changed=changed,
    )


_DATED = (METRICS, HISTORY, COMPARISON, RECIPE)


def _comparison(path: Path, shown: str, changed: float) -> RunSummary:
    running = lock_holder(path) is not None
    if not (path / COMPARISON).is_file():
        return RunSummary(shown, "comparison", "running" if running else "stopped", changed=changed)
    content = _json(path / COMPARISON) or {}
    try:
        tasks = content["tasks"]
        methods = dict.fromkeys(str(entry["method"]) for task in tasks for entry in task["results"])
        complete = bool(content.get("complete", True))
        names = ", ".join(str(task["name"]) for task in tasks), ", ".join(methods), str(tasks[0]["model"])
    except (KeyError, TypeError, IndexError):
        return RunSummary(shown, "comparison", "damaged", changed=changed)
    state: State = "running" if running else "finished" if complete else "stopped"
    return RunSummary(shown, "comparison", state, *names, changed=changed)


def _json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None if it is missing, damaged or too large to be one of a run."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
