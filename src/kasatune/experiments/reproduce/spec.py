"""The runs that a table takes, each with its recipe and with what sets it apart from the published run."""

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
# Where a run happens and what it reads decide nothing about its score, or are told of elsewhere.
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
        method: as it was written.
        seed: of the run.
        recipe: what is run.
        folder: its run directory.
        differences: what the run has otherwise than the built-in recipe, "key: ours (published: theirs)" each, or
            "(recipe: ...)".
        missing: why it cannot be run; "" where it can.
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
        """The run in a few words."""
        return f"{self.method} on {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Request:
    """What is to be reproduced.

    Attributes:
        experiment: the table.
        model: whose figures are the published ones.
        quick: whether the scaled-down form is run.
        cases: the runs.
        methods: as they were written.
        seeds: of the runs.
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
    """The runs of a table, checked before anything is loaded.

    Args:
        experiment: the table.
        out: where the runs are kept.
        find: the file of a built-in recipe.
        model: a base model of the table, or any other model in its place; None for the table's first.
        quick: the scaled-down form.
        methods: separated by commas; None for the table's own.
        seeds: of the runs of every method on every task.
        tasks: of the table, to run those alone.
        data: a folder with the tasks' data; None takes it from the hub.
        overrides: "section.key=value" for every recipe, beyond those of the quick form.
        judging: how answers are graded, in the tables where they are.

    Raises:
        InputError: something is unknown, a recipe has faults, or the judge, its questions or its prompts have.
    """
    names = {one.name: one for one in experiment.models}
    paper = names.get(model or "", experiment.models[0])
    base = None if model is None or model in names else model
    if quick and base is None:
        base = experiment.quick_model
        if base is None:
            raise InputError(f"--quick: {experiment.name} needs a small base model: name one with --model MODEL")
    check_judging(experiment, judging)
    changes = _changes(experiment, quick=quick, base=base)
    variants = parse_variants(methods) if methods else [parse_variants(one)[0] for one in experiment.methods]
    wanted = _wanted(paper, tasks)
    cases = []
    for task in wanted:
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
    return Request(experiment, paper, quick, tuple(cases), tuple(one.text for one in variants), tuple(seeds), judging)


def _wanted(paper: PaperModel, tasks: Sequence[str]) -> list[str]:
    if not tasks:
        return list(paper.recipes)
    short = {name.rpartition("/")[2]: name for name in paper.recipes}
    unknown = [task for task in tasks if task not in short and task not in paper.recipes]
    if unknown:
        raise InputError(f"--tasks: {', '.join(map(repr, unknown))} received; the table has {', '.join(short)}")
    asked = {short.get(task, task) for task in tasks}
    return [name for name in paper.recipes if name in asked]


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
    wrong = [one for one in overrides if "=" not in one]
    if wrong:
        raise InputError(f"{wrong[0]!r} received; overrides are written section.key=value, as training.epochs=3")
    return {key: value for key, _, value in (one.partition("=") for one in overrides)}


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
    found: dict[str, Any] = {}
    for section, value in recipe.model_dump().items():
        found |= {f"{section}.{key}": one for key, one in (value or {}).items()} if section != "output" else {}
    return found


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "all" if key in ("task.max_train", "task.max_eval") else "none"
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
