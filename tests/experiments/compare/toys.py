"""A comparison of toy methods on toy data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kasatune.evaluation.unrelated_text import UnrelatedText
from kasatune.experiments.compare.compare import compare
from kasatune.experiments.compare.spec import ComparisonSpec, Search, make_spec
from kasatune.experiments.compare.variants import parse_variants
from tests.toys import make_recipe


def make_toy_spec(
    bert: Path,
    folder: Path,
    methods: str = "kasa,lora",
    seeds: tuple[int, ...] = (0, 1),
    trials: int = 2,
    training: dict[str, Any] | None = None,
    **options: Any,
) -> ComparisonSpec:
    recipe = make_recipe(bert, folder, train=24, validation=17, **{"epochs": 1, **(training or {})})
    search = options.pop("search", None) or Search("grid", trials, seeds=1, extensions=0)
    options.setdefault("unrelated", UnrelatedText(tokens=320))
    return make_spec([(Path("toy.yaml"), recipe)], parse_variants(methods), seeds, search=search, **options)


class Told:
    """Remembers the lines about runs."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, text: str) -> None:
        if "/" in text.split(" ")[0]:
            self.lines.append(text)


def run(spec: ComparisonSpec, out: Path, **options: Any) -> tuple[dict[str, Any], list[str]]:
    told = Told()
    return compare(spec, out, tell=told, **options), told.lines


def scores(found: dict[str, Any]) -> dict[tuple[str, str, int], Any]:
    """Every metric of every reported run, and what was chosen for it."""
    return {
        (task["name"], entry["method"], one["seed"]): (one["metrics"], (entry["search"] or {}).get("chosen"))
        for task in found["tasks"]
        for entry in task["results"]
        for one in entry["runs"]
    }


def folders(out: Path) -> dict[str, int]:
    """Finished runs, with the time at which they were finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (out / "runs").glob("*/run.json")}
