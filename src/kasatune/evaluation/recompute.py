"""The numbers of a run made again from its files, and held against what it recorded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kasatune.errors import DataError, InputError, KasatuneError
from kasatune.evaluation.evaluate import evaluate
from kasatune.io.atomic import finite
from kasatune.runs.directory import METRICS, read_metrics, read_recipe
from kasatune.runs.provenance import recipe_sha256

ELSEWHERE = 5e-3  # largest difference of a score on another machine or with other software

Line = tuple[str, bool | None, str]


def recomputed(run_dir: Path) -> Iterator[Line]:
    """Recipe, rows, base model and scores of a run against metrics.json: (name, whether it holds, figure).

    On the machine and with the software of the run the scores must be the same bit for bit; elsewhere they may differ
    by 0.005. None stands for what cannot be checked: a run of an earlier version, rows that are not here.

    Raises:
        InputError: recipe.yaml or metrics.json is missing or damaged.
    """
    before = read_metrics(run_dir)
    yield "recipe", *_same(recipe_sha256(read_recipe(run_dir)), before.get("recipe_sha256"))
    try:
        after = finite(evaluate(run_dir))
    except DataError as fault:
        yield "scores", None, f"not made again: {fault}"
        return
    except KasatuneError as fault:
        yield "scores", False, str(fault)
        return
    yield "rows", *_same(after["data_sha256"], before.get("data_sha256"))
    yield "base model", *_same(_fingerprint(after), _fingerprint(before))
    yield "scores", *_scores(before, after)


def _same(found: str, recorded: str | None) -> tuple[bool | None, str]:
    if not recorded:
        return None, f"{METRICS} says nothing of it"
    words = f"SHA-256 {found[:12]}..."
    return (
        found == recorded,
        f"{words} as recorded" if found == recorded else f"{words}, recorded was {recorded[:12]}...",
    )


def _fingerprint(metrics: Mapping[str, Any]) -> str:
    model = metrics.get("model")
    return str(model.get("fingerprint") or "") if isinstance(model, Mapping) else ""


def _scores(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[bool | None, str]:
    recorded, found = before.get("metrics") or {}, after["metrics"]
    if not recorded:
        return None, "the run was stopped before it had any"
    shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items() if value is not None)
    if recorded == found:
        return True, f"{shown}: equal bit for bit"
    worst, name = max((_distance(value, found.get(name)), name) for name, value in recorded.items())
    figure = f"{name} was {recorded[name]} and is {found.get(name)}"
    moved = [key for key in ("machine", "versions") if before.get(key) != after.get(key)]
    if not moved:
        return False, figure
    return worst <= ELSEWHERE, f"{figure}; another {' and other '.join(moved)}, limit {ELSEWHERE:g}"


def _distance(one: Any, other: Any) -> float:
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    return abs(float(one) - float(other))


def is_run(directory: Path) -> bool:
    """Whether a directory holds a run that recorded its numbers."""
    try:
        read_metrics(directory)
    except InputError:
        return False
    return True
