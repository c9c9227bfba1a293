"""Registered comparisons: a file that states configuration, endpoint, margins and analysis before the first run.

`kasatune compare ... --register FILE` writes the file and runs nothing. Once it is committed, the same command with
`--registered FILE` runs the comparison, refuses any other configuration, and records the file's SHA-256 and commit.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from kasatune.errors import InputError
from kasatune.experiments.compare.endpoint_rows import endpoint_names
from kasatune.experiments.compare.method_on_task import MethodOnTask
from kasatune.experiments.compare.primary_endpoint import as_record
from kasatune.experiments.compare.significance import ANALYSIS
from kasatune.experiments.compare.spec import ComparisonSpec
from kasatune.io.atomic import write_text
from kasatune.recipes.yaml_io import dump_yaml, parse_yaml, read_recipe_text

_SCHEMA_VERSION = 1
_HEADER = (
    "# The plan of a comparison, written by `kasatune compare --register`. Commit it before the first run, then give\n"
    "# the same command with --registered instead.\n"
)
_GIT_SECONDS = 20
_NOT_PLANNED = {"training": ("device", "report_to", "seed"), "model": (), "task": (), "method": ("name",)}
_SHOWN = 5


def planned_content(spec: ComparisonSpec, methods: Sequence[MethodOnTask]) -> dict[str, Any]:
    """The content of the file: everything that decides the result of the comparison, as plain data.

    Raises:
        InputError: there is no primary endpoint.
    """
    if spec.primary is None:
        raise InputError("--register: a plan needs a primary endpoint; give --primary task:metric:method:reference")
    data = {method.task.name: method.data for method in methods}
    margins = {
        metric: margin
        for task in spec.tasks
        for metric in endpoint_names(data[task.name].name, data[task.name].primary, data[task.name].part_tasks)
        if (margin := spec.margin(metric)) is not None
    }
    return {
        "schema_version": _SCHEMA_VERSION,
        "primary": as_record(spec.primary),
        "margins": margins,
        "analysis": ANALYSIS,
        "methods": [variant.text for variant in spec.variants],
        "reference": spec.reference,
        "seeds": list(spec.seeds),
        "protocol": spec.protocol,
        "search": asdict(spec.search),
        "unrelated": {
            "source": spec.unrelated.source,
            "sha256": spec.unrelated.sha256,
            "tokens": spec.unrelated.tokens,
        },
        "tasks": {
            task.name: {"rows_sha256": data[task.name].sha256, "recipe": _settings(task.recipe.model_dump(mode="json"))}
            for task in spec.tasks
        },
    }


def write_plan(spec: ComparisonSpec, methods: Sequence[MethodOnTask], path: Path) -> None:
    """Write the plan of a comparison into a new file.

    Raises:
        InputError: the file exists, or there is no primary endpoint.
        OutputError: it cannot be written.
    """
    content = planned_content(spec, methods)
    if path.exists():
        raise InputError(f"--register: {path} exists; a plan is never changed: choose another name")
    write_text(path, _HEADER + dump_yaml(content))


def read_registration(spec: ComparisonSpec, methods: Sequence[MethodOnTask], path: Path) -> dict[str, Any]:
    """Compare a comparison with its registered plan, and find the commit of the plan.

    Returns:
        {"file", "sha256", "commit", "committed_at"}; the last two are None unless git holds the file unchanged.

    Raises:
        InputError: the file is missing or damaged, or the comparison is another one than planned.
    """
    text = read_recipe_text(path)
    try:
        planned = parse_yaml(text)
    except ValueError as fault:
        raise InputError(f"--registered: {path} is not YAML ({fault}); write it with --register") from fault
    if not isinstance(planned, dict) or "primary" not in planned:
        raise InputError(f"--registered: {path} is not a plan; write one with --register")
    differing = [
        place for place in _differences(planned, planned_content(spec, methods)) if place != "unrelated.source"
    ]
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise InputError(
            f"--registered: this comparison differs from {path} in {', '.join(differing[:_SHOWN])}{more}; give the "
            "command of the plan, or register another plan"
        )
    commit, committed_at = _commit(path)
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "commit": commit,
        "committed_at": committed_at,
    }


def with_first_run(registration: Mapping[str, Any], methods: Sequence[MethodOnTask]) -> dict[str, Any]:
    """Add when the first reported run began, and whether the plan had been committed by then."""
    begun = [
        datetime.fromisoformat(run.run["finished"]) - timedelta(seconds=run.run.get("seconds", 0.0))
        for method in methods
        for _, run in method.finals
        if run.run.get("finished")
    ]
    first, committed = min(begun, default=None), registration["committed_at"]
    before = None
    if committed is not None:
        # commits are dated in whole seconds
        before = first is None or datetime.fromisoformat(committed) <= first
    return {**registration, "first_run_at": None if first is None else first.isoformat(), "before_first_run": before}


def _settings(recipe: dict[str, Any]) -> dict[str, Any]:
    sections = {
        section: {key: value for key, value in (recipe[section] or {}).items() if key not in left_out}
        for section, left_out in _NOT_PLANNED.items()
    }
    return {**sections, "generation": recipe.get("generation")}


def _differences(planned: Any, actual: Any, place: str = "") -> list[str]:
    """The places where two contents differ."""
    if isinstance(planned, dict) and isinstance(actual, dict):
        return [
            difference
            for key in dict.fromkeys([*planned, *actual])
            for difference in _differences(planned.get(key), actual.get(key), f"{place}.{key}" if place else str(key))
        ]
    return [] if planned == actual else [place]


def _commit(path: Path) -> tuple[str | None, str | None]:
    """Hash and date of the commit that last changed a file; None twice if it is not committed in its present form."""
    folder, name = path.resolve().parent, path.name
    status = _git(folder, "status", "--porcelain", "--ignored", "--", name)
    latest = _git(folder, "log", "-1", "--format=%H %cI", "--", name)
    if status != "" or not latest:
        return None, None
    commit, _, date = latest.partition(" ")
    return commit, date


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git in a folder; None if it fails, as outside of a repository or without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
