"""What a comparison is asked to do, checked as a whole before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kasatune.data.tasks.table import TASKS
from kasatune.errors import InputError, RecipeError
from kasatune.experiments.compare.variants import Variant, keys_read
from kasatune.methods.table import BASELINE_METHOD, METHODS, REFERENCE_METHOD
from kasatune.recipes.schema import Recipe

Protocol = Literal["clean", "paper"]
SearchKind = Literal["grid", "random", "optuna"]
PROTOCOLS: Mapping[str, str] = {
    "clean": "the state after the last epoch, scored once; settings searched on a part of the training rows",
    "paper": "the best epoch and the settings, both chosen on the rows that are reported, as published logs have it",
}
SEARCH_SEED = 2**32 - 1  # of the search: its draws, its split and its runs; never a seed that is reported
HELD_OUT = 0.2  # share of the training rows that the search scores on


@dataclass(frozen=True)
class Search:
    """How the settings of a method are searched.

    Attributes:
        kind: "grid", "random" or "optuna".
        trials: runs for every method; 1 takes the recipe's settings as they are.
        low: smallest learning rate; None for a tenth of the recipe's.
        high: largest learning rate; None for ten times the recipe's.
    """

    kind: SearchKind = "grid"
    trials: int = 4
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Task:
    """A task of a comparison.

    Attributes:
        name: in tables.
        recipe: model, task and training that all methods share.
    """

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Request:
    """A comparison before it happens.

    Attributes:
        tasks: what is learnt.
        variants: the methods.
        seeds: of the runs that are reported.
        reference: the text of the variant that differences are taken against.
        protocol: "clean" or "paper"; see `PROTOCOLS`.
        search: how settings are searched.
    """

    tasks: tuple[Task, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    reference: str
    protocol: Protocol = "clean"
    search: Search = Search()

    def recipe(self, task: Task, variant: Variant, seed: int, settings: Mapping[str, float]) -> Recipe:
        """What one run does; `settings` are those that the search found, or tries."""
        method = {key: value for key, value in settings.items() if key != "learning_rate"}
        training: dict[str, Any] = {
            "seed": seed,
            "select": "last" if self.protocol == "clean" else "best",
            "report_to": [],
        }
        if "learning_rate" in settings:
            training["learning_rate"] = settings["learning_rate"]
        return variant.apply(task.recipe, training, method).model_copy(update={"output": "run"})


def make_request(
    recipes: Sequence[tuple[Path, Recipe]],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    *,
    reference: str | None = None,
    protocol: str = "clean",
    search: Search | None = None,
) -> Request:
    """A checked comparison.

    Args:
        recipes: the file and the content of one recipe a task; their methods do not count.
        variants: the methods.
        seeds: of the reported runs.
        reference: a variant as it was written; None for REFERENCE_METHOD if it takes part, else the first that trains.
        protocol: "clean" or "paper".
        search: None for four trials on a grid.

    Raises:
        InputError: something is unknown or contradicts the rest.
        RecipeError: every fault of every method on every task at once.
    """
    search = search or Search()
    _check_search(search)
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol: {protocol!r} received; must be one of {', '.join(PROTOCOLS)}")
    if SEARCH_SEED in seeds:
        raise InputError(f"--seeds: {SEARCH_SEED} is the seed of the search; give others")
    request = Request(
        tasks=_tasks(recipes),
        variants=tuple(_with_baseline(variants)),
        seeds=tuple(seeds),
        reference=_reference(reference, variants),
        protocol=protocol,  # type: ignore[arg-type]
        search=search,
    )
    _check_recipes(request)
    return request


def _with_baseline(variants: Sequence[Variant]) -> list[Variant]:
    """The fitted head takes part in every comparison: what does not beat it has learnt nothing."""
    there = any(is_fitted(variant.method) for variant in variants)
    return [*variants] if there else [*variants, Variant(BASELINE_METHOD, BASELINE_METHOD, {})]


def is_fitted(method: str) -> bool:
    """Whether a method is fitted in one go, with nothing to search and no steps to count."""
    return METHODS[method].fitted


def _check_search(search: Search) -> None:
    if search.kind not in ("grid", "random", "optuna"):
        raise InputError(f"--search: {search.kind!r} received; must be grid, random or optuna")
    if search.trials < 1:
        raise InputError(f"--trials: {search.trials} received; must be 1 (no search) or more")
    low, high = search.low, search.high
    if low is not None and high is not None and not 0 < low <= high:
        raise InputError(
            f"--learning-rates: {low:g},{high:g} received; give two numbers above 0, the smaller one first"
        )


def _tasks(recipes: Sequence[tuple[Path, Recipe]]) -> tuple[Task, ...]:
    tasks = []
    for path, recipe in recipes:
        if TASKS[recipe.task.name].kind == "generation":
            raise InputError(
                f"{recipe.task.name}: it generates text, whose scores are not compared row by row; train each method "
                "with `kasatune train RECIPE method.name=...` and lay their metrics.json side by side"
            )
        own = recipe.task.name in ("classification", "regression")
        tasks.append(Task(path.stem if own else recipe.task.name, recipe))
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--tasks: {', '.join(twice)} is there twice; name each task once")
    return tuple(tasks)


def _reference(given: str | None, variants: Sequence[Variant]) -> str:
    texts = [variant.text for variant in variants]
    if given is not None:
        if given not in texts:
            raise InputError(f"--reference: {given!r} is not among --methods ({', '.join(texts)})")
        return given
    trained = [variant.text for variant in variants if not is_fitted(variant.method)]
    return REFERENCE_METHOD if REFERENCE_METHOD in texts else (trained or texts)[0]


def _check_recipes(request: Request) -> None:
    faults: list[str] = []
    for task in request.tasks:
        for variant in request.variants:
            unread = [key for key in variant.settings if not _reads(variant.method, key)]
            faults += [f"{variant.text}: method.{key} is not read by {variant.method}; leave it out" for key in unread]
            try:
                request.recipe(task, variant, request.seeds[0], {})
            except RecipeError as error:
                faults += [f"{variant.text} on {task.name}: {fault}" for fault in error.faults]
    if faults:
        raise RecipeError(list(dict.fromkeys(faults)), "--methods")


def _reads(method: str, key: str) -> bool:
    """Whether a method reads a key of the recipe's `method` section; its own options are checked with the recipe."""
    from kasatune.recipes.schema import MethodSection

    return key not in MethodSection.model_fields or key in keys_read(method)
