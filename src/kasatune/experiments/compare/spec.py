"""The specification of a comparison: tasks, methods, seeds and search, validated before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from kasatune.data.tasks.mixture_parts import part_tasks
from kasatune.data.tasks.table import TASKS
from kasatune.errors import InputError, RecipeError
from kasatune.evaluation.unrelated_text import TOKENS, WINDOW, UnrelatedText
from kasatune.experiments.compare.primary_endpoint import PrimaryEndpoint, analysed_metrics, parse_primary
from kasatune.experiments.compare.variants import Variant, keys_read
from kasatune.experiments.compare.verdict import DEFAULT_MARGINS, parse_margins
from kasatune.methods.table import BASELINE_METHOD, METHODS, REFERENCE_METHOD, canonical_name
from kasatune.models.precision import with_precision
from kasatune.recipes.schema import MethodSection, Recipe
from kasatune.reports.formatting import score_name

Protocol = Literal["clean", "paper"]
SearchKind = Literal["grid", "random", "optuna"]
PROTOCOLS: Mapping[Protocol, str] = {
    "clean": "the state after the last epoch, scored once; settings searched on a part of the training rows",
    "paper": "the best epoch and the settings, both chosen on the rows that are reported, as in published logs",
}
SEARCH_SEED = 2**32 - 1  # for the draws and the split of the search, and its first seed; never a reported seed
MOST_SEARCH_SEEDS = 100  # seeds counted down from SEARCH_SEED that are reserved for the search
_MOST_EXTENSIONS = 20
HELD_OUT = 0.2  # share of the training rows that search trials are scored on


@dataclass(frozen=True)
class Search:
    """How the settings of a method are searched.

    Attributes:
        kind: "grid", "random" or "optuna".
        trials: number of trials for every method; 1 keeps the recipe's settings.
        low: smallest learning rate; None for a tenth of the recipe's.
        high: largest learning rate; None for ten times the recipe's.
        seeds: number of seeds of every trial, whose mean score counts.
        extensions: most trials of a method beyond the bounds, as long as the best learning rate is at the edge.
    """

    kind: SearchKind = "grid"
    trials: int = 4
    low: float | None = None
    high: float | None = None
    seeds: int = 3
    extensions: int = 3

    @property
    def seed_numbers(self) -> list[int]:
        """The seeds of every trial, counted down from `SEARCH_SEED`."""
        return [SEARCH_SEED - number for number in range(self.seeds)]


@dataclass(frozen=True)
class Task:
    """A task of a comparison.

    Attributes:
        name: name in tables.
        recipe: model, task and training settings, shared by all methods.
    """

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class ComparisonSpec:
    """What a comparison runs.

    Attributes:
        tasks: the tasks.
        variants: the methods with their settings.
        seeds: seeds of the reported runs.
        reference: text of the variant that all others are compared with.
        protocol: "clean" or "paper"; see `PROTOCOLS`.
        search: how settings are searched.
        margins: margins of equivalence by score, where they differ from the defaults.
        primary: the difference that is tested alone; None if all are exploratory.
        unrelated: the text on which forgetting is measured.
    """

    tasks: tuple[Task, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    reference: str
    protocol: Protocol = "clean"
    search: Search = Search()
    margins: Mapping[str, float] = field(default_factory=dict)
    primary: PrimaryEndpoint | None = None
    unrelated: UnrelatedText = field(default_factory=UnrelatedText)

    def margin(self, metric: str) -> float | None:
        """The margin of equivalence of a score; None if it has none."""
        name = score_name(metric)
        return self.margins.get(metric, self.margins.get(name, DEFAULT_MARGINS.get(name)))

    def takes_part(self, task: Task, variant: Variant) -> bool:
        """Whether a method is run on a task: a head fitted on a frozen model writes no text."""
        return not (is_fitted(variant.method) and TASKS[task.recipe.task.name].kind == "generation")

    def recipe(self, task: Task, variant: Variant, seed: int, settings: Mapping[str, float]) -> Recipe:
        """The recipe of one run, with the searched `settings` filled in."""
        method = {key: value for key, value in settings.items() if key != "learning_rate"}
        training: dict[str, Any] = {
            "seed": seed,
            "select": "last" if self.protocol == "clean" else "best",
            "report_to": [],
        }
        if "learning_rate" in settings:
            training["learning_rate"] = settings["learning_rate"]
        return variant.apply(task.recipe, training, method).model_copy(update={"output": "run"})


def make_spec(
    recipes: Sequence[tuple[Path, Recipe]],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    *,
    reference: str | None = None,
    protocol: str = "clean",
    search: Search | None = None,
    margins: Sequence[str] = (),
    primary: str | None = None,
    unrelated: UnrelatedText | None = None,
) -> ComparisonSpec:
    """Return a validated comparison.

    Args:
        recipes: (file, content) of one recipe per task; the method that a recipe names is ignored.
        variants: the methods.
        seeds: seeds of the reported runs.
        reference: text of a variant; None for REFERENCE_METHOD if it takes part, else the first method that trains.
        protocol: "clean" or "paper".
        search: None for a grid of four trials.
        margins: values of `--margin`.
        primary: value of `--primary`.
        unrelated: the text on which forgetting is measured; None for 20,000 tokens of documentation strings.

    Raises:
        InputError: a value is unknown or inconsistent with the others.
        RecipeError: all faults of all methods on all tasks.
    """
    search = search or Search()
    _check_search(search)
    names: dict[str, Protocol] = {name: name for name in PROTOCOLS}
    if protocol not in names:
        raise InputError(f"--protocol: {protocol!r} received; must be one of {', '.join(names)}")
    reserved = [seed for seed in seeds if seed > SEARCH_SEED - MOST_SEARCH_SEEDS]
    if reserved:
        raise InputError(f"--seeds: {reserved[0]} is reserved for the search; choose other seeds")
    text = unrelated or UnrelatedText()
    if text.tokens < WINDOW:
        raise InputError(f"--unrelated-tokens: {text.tokens} received; must be {WINDOW} or more")
    if text.file is not None or text.tokens > TOKENS:  # the default text is long enough for the default
        text.documents()
    resolved = [(path, with_precision(recipe)[0]) for path, recipe in recipes]
    tasks, own_margins = _tasks(resolved), parse_margins(margins)
    texts = [variant.text for variant in variants if not is_fitted(variant.method)]
    mains = {
        task.name: (task.recipe.task.name, TASKS[task.recipe.task.name].primary, part_tasks(task.recipe.task))
        for task in tasks
    }
    _check_margins(own_margins, mains)
    writing = [task.name for task in tasks if TASKS[task.recipe.task.name].kind == "generation"]
    if writing and not texts:
        raise InputError(f"--methods: {writing[0]} generates text, which only methods that train a model do; add one")
    spec = ComparisonSpec(
        tasks=tasks,
        variants=tuple(_with_baseline(variants)),
        seeds=tuple(seeds),
        reference=_reference(reference, variants),
        protocol=names[protocol],
        search=search,
        margins=own_margins,
        primary=None if primary is None else parse_primary(primary, mains, texts, own_margins),
        unrelated=text,
    )
    _check_recipes(spec)
    return spec


def _with_baseline(variants: Sequence[Variant]) -> list[Variant]:
    """Add the baseline method if it is missing: a method that does not beat it has learnt nothing."""
    if any(is_fitted(variant.method) for variant in variants):
        return list(variants)
    return [*variants, Variant(BASELINE_METHOD, BASELINE_METHOD, {})]


def is_fitted(method: str) -> bool:
    """Whether a method is fitted in closed form, with nothing to search and no training steps."""
    return METHODS[method].fitted


def _check_search(search: Search) -> None:
    if search.kind not in get_args(SearchKind):
        raise InputError(f"--search: {search.kind!r} received; must be grid, random or optuna")
    if search.trials < 1:
        raise InputError(f"--trials: {search.trials} received; must be 1 (no search) or more")
    if not 1 <= search.seeds <= MOST_SEARCH_SEEDS:
        raise InputError(f"--search-seeds: {search.seeds} received; must be from 1 to {MOST_SEARCH_SEEDS}")
    if not 0 <= search.extensions <= _MOST_EXTENSIONS:
        raise InputError(f"--search-extensions: {search.extensions} received; must be from 0 to {_MOST_EXTENSIONS}")
    low, high = search.low, search.high
    if low is not None and high is not None and not 0 < low <= high:
        raise InputError(
            f"--learning-rates: {low:g},{high:g} received; give two numbers above 0, the smaller one first"
        )


def _check_margins(margins: Mapping[str, float], tasks: Mapping[str, tuple[str, str, Mapping[str, str]]]) -> None:
    known = {metric: None for task in tasks.values() for metric in analysed_metrics(*task)}
    known |= {score_name(metric): None for metric in known}
    unknown = [metric for metric in margins if metric not in known]
    if unknown:
        raise InputError(f"--margin: {unknown[0]!r} is not a score of these tasks; choose from {', '.join(known)}")


def _tasks(recipes: Sequence[tuple[Path, Recipe]]) -> tuple[Task, ...]:
    tasks = []
    for path, recipe in recipes:
        has_own_data = TASKS[recipe.task.name].reads_own_files or recipe.task.parts is not None
        tasks.append(Task(path.stem if has_own_data else recipe.task.name, recipe))
    names = [task.name for task in tasks]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"--tasks: {', '.join(repeated)} is given more than once; name each task once")
    return tuple(tasks)


def _reference(given: str | None, variants: Sequence[Variant]) -> str:
    texts = [variant.text for variant in variants]
    if given is not None:
        written, colon, settings = given.partition(":")
        name = f"{canonical_name(written)}{colon}{settings}"
        if name not in texts:
            raise InputError(f"--reference: {given!r} is not among --methods ({', '.join(texts)})")
        return name
    trained = [variant.text for variant in variants if not is_fitted(variant.method)]
    return REFERENCE_METHOD if REFERENCE_METHOD in texts else (trained or texts)[0]


def _check_recipes(spec: ComparisonSpec) -> None:
    faults: list[str] = []
    for task in spec.tasks:
        if task.recipe.model.adapter is not None:
            faults.append(f"model.adapter: {task.name}: a comparison trains all methods from the base; leave it out")
        for variant in (variant for variant in spec.variants if spec.takes_part(task, variant)):
            unread = [key for key in variant.settings if not _reads(variant.method, key)]
            faults += [f"{variant.text}: {variant.method} does not read method.{key}; remove it" for key in unread]
            try:
                spec.recipe(task, variant, spec.seeds[0], {})
            except RecipeError as error:
                faults += [f"{variant.text} on {task.name}: {fault}" for fault in error.faults]
    if faults:
        raise RecipeError(list(dict.fromkeys(faults)), "--methods")


def _reads(method: str, key: str) -> bool:
    """Whether a method reads a key of the recipe's `method` section; its own options are checked with the recipe."""
    return key not in MethodSection.model_fields or key in keys_read(method)
