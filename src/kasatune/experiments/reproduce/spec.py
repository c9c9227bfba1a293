"""The runs behind a table of the paper: recipes, run directories, and differences from the published runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasatune.errors import InputError
from kasatune.experiments.compare.variants import Variant, parse_variants
from kasatune.experiments.reproduce.judge_scores import Judging, check_judging
from kasatune.experiments.reproduce.local_data import local_data
from kasatune.experiments.reproduce.published.schema import Experiment, PaperModel
from kasatune.recipes.schema import Recipe, load_recipe

RUNS = "runs"
# Keys that do not affect a score, or whose differences are reported elsewhere.
_NO_DIFFERENCE = (
    "task.data",
    "training.seed",
    "training.device",
    "training.report_to",
    "training.eval_batch_size",
    "training.gradient_accumulation",
    "training.gradient_checkpointing",
)


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        task: name of the task.
        method: the method, as given on the command line.
        seed: seed of the run.
        recipe: recipe of the run.
        folder: its run directory.
        differences: settings that differ from the built-in recipe, each as "key: ours (published: theirs)" or
            "key: ours (recipe: theirs)".
        missing: why it cannot be run; "" if it can.
    """

    task: str
    method: str
    seed: int
    recipe: Recipe
    folder: Path
    differences: tuple[str, ...]
    missing: str = ""

    @property
    def title(self) -> str:
        """Method, task and seed."""
        return f"{self.method} on {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Request:
    """A table to reproduce, and the runs for it.

    Attributes:
        experiment: the table.
        model: the paper's base model, whose figures are the published ones.
        quick: whether the scaled-down form is run.
        cases: the runs.
        methods: the methods, as given on the command line.
        seeds: seeds of the runs.
        judging: how answers are graded.
    """

    experiment: Experiment
    model: PaperModel
    quick: bool
    cases: tuple[Case, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    judging: Judging


def make_request(
    experiment: Experiment,
    out: Path,
    find: Callable[[str], Path],
    *,
    model: str | None = None,
    quick: bool = False,
    methods: str | None = None,
    seeds: Sequence[int] = (0,),
    tasks: Sequence[str] = (),
    data: Path | None = None,
    overrides: Sequence[str] = (),
    judging: Judging = Judging(),  # noqa: B008 - it is frozen
) -> Request:
    """The runs of a table, validated before anything is loaded.

    Args:
        experiment: the table.
        out: directory of the runs.
        find: returns the file of a built-in recipe.
        model: a base model of the table, or any other model to use instead; None for the table's first.
        quick: run the scaled-down form.
        methods: separated by commas; None for those of the table.
        seeds: seeds of the runs of every method on every task.
        tasks: tasks of the table to run; all if empty.
        data: a folder with the data of the tasks; None to download them from the hub.
        overrides: "section.key=value" for every recipe, in addition to those of the quick form.
        judging: how answers are graded, for tables with a judge.

    Raises:
        InputError: a name is unknown, or a recipe, the judge, its questions or its prompts are invalid.
    """
    names = {paper_model.name: paper_model for paper_model in experiment.models}
    paper = names.get(model or "", experiment.models[0])
    base = None if model is None or model in names else model
    if quick and base is None:
        base = experiment.quick_model
        if base is None:
            raise InputError(f"--quick: {experiment.name} needs a small base model: name one with --model MODEL")
    check_judging(experiment, judging)
    changes = _changes(experiment, quick=quick, base=base)
    variants = parse_variants(methods) if methods else [parse_variants(name)[0] for name in experiment.methods]
    selected_tasks = _selected_tasks(paper, tasks)
    cases = []
    for task in selected_tasks:
        path, fixed = find(paper.recipes[task]), experiment.of_task.get(task, {})
        published = load_recipe(path, _texts(fixed))
        local, lack = local_data(experiment, task, data)
        small = experiment.quick_of_task.get(task, {}) if quick else {}
        own = {**fixed, **changes, **local, **small, **_parsed(overrides)}
        recipe = load_recipe(path, _texts(own), check_inputs=True)
        for variant in variants:
            for seed in seeds:
                folder = out / RUNS / _name(task, variant, seed)
                ours = variant.apply(recipe, {"seed": seed}, {}).model_copy(update={"output": str(folder)})
                differences = _differences(ours, variant.apply(published, {}, {}), experiment.settings)
                cases.append(Case(task, variant.text, seed, ours, folder, tuple(differences), lack))
    return Request(
        experiment, paper, quick, tuple(cases), tuple(variant.text for variant in variants), tuple(seeds), judging
    )


def _selected_tasks(paper: PaperModel, tasks: Sequence[str]) -> list[str]:
    if not tasks:
        return list(paper.recipes)
    short = {name.rpartition("/")[2]: name for name in paper.recipes}
    unknown = [task for task in tasks if task not in short and task not in paper.recipes]
    if unknown:
        raise InputError(f"--tasks: {', '.join(map(repr, unknown))} received; the table has {', '.join(short)}")
    selected = {short.get(task, task) for task in tasks}
    return [name for name in paper.recipes if name in selected]


def _changes(experiment: Experiment, *, quick: bool, base: str | None) -> dict[str, str]:
    changes = dict(experiment.quick) if quick else {}
    if base is not None:
        changes["model.name"] = base
        if not quick or base != experiment.quick_model:
            changes["method.target_modules"] = "default"
    return changes


def _texts(overrides: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in overrides.items()]


def _parsed(overrides: Sequence[str]) -> dict[str, str]:
    wrong = [override for override in overrides if "=" not in override]
    if wrong:
        raise InputError(f"{wrong[0]!r} received; overrides are written section.key=value, as training.epochs=3")
    return {key: value for key, _, value in (override.partition("=") for override in overrides)}


def _name(task: str, variant: Variant, seed: int) -> str:
    return "-".join([task.rpartition("/")[2], variant.text.replace(":", "-").replace("=", "-"), f"seed{seed}"])


def _differences(ours: Recipe, theirs: Recipe, settings: str) -> list[str]:
    mine, published = _flat(ours), _flat(theirs)
    return [
        f"{key}: {_shown(key, mine[key])} ({settings}: {_shown(key, published[key])})"
        for key in mine
        if key not in _NO_DIFFERENCE and mine[key] != published[key]
    ]


def _flat(recipe: Recipe) -> Mapping[str, Any]:
    """The values of a recipe by "section.key", without `output`."""
    return {
        f"{section}.{key}": value
        for section, values in recipe.model_dump().items()
        if section != "output"
        for key, value in (values or {}).items()
    }


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "all" if key in ("task.max_train", "task.max_eval") else "none"
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
