"""What a recipe's keys must satisfy together.

Each check names the keys that it reads and is skipped where one of them is already faulty, so that the faults of a
recipe are reported at once and none is a consequence of another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kasatune.data.readers.hub import HUB
from kasatune.data.tasks.table import TASKS
from kasatune.methods.table import METHODS
from kasatune.recipes.messages import did_you_mean, show
from kasatune.redaction import may_run_for_ever, redacted

if TYPE_CHECKING:
    from kasatune.recipes.schema import Recipe, TaskSection

Check = Callable[["Recipe"], Iterator[str]]
Checks = list[tuple[tuple[str, ...], Check]]

OWN_DATA_KEYS: Mapping[str, tuple[str, ...]] = {
    "classification": ("train", "validation", "text", "label"),
    "regression": ("train", "validation", "text", "label"),
    "text-generation": ("train", "validation", "prompt", "completion"),
    "instruction": ("train", "validation"),
}
_SELF_CONTAINED = ("demo",)
FILE_KINDS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
TRACKERS = {
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}

_RULES: Checks = []


def contradictions(recipe: Recipe, faulty: Mapping[str, str]) -> list[str]:
    """The faults that need only the recipe, among keys that are not in `faulty`."""
    return run_checks(_RULES, recipe, faulty)


def comes_from_hub(task: TaskSection) -> bool:
    """Whether the rows of a task are downloaded."""
    own = task.name in OWN_DATA_KEYS and not str(task.train).startswith(HUB)
    return task.data is None and not own and task.name not in _SELF_CONTAINED


def run_checks(checks: Checks, recipe: Recipe, faulty: Mapping[str, str]) -> list[str]:
    """The sentences of those checks that read no faulty key."""
    found = []
    for places, check in checks:
        if not any(place in faulty or place.partition(".")[0] in faulty for place in places):
            found += check(recipe)
    return found


def _rule(*places: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        _RULES.append((places, check))
        return check

    return add


@_rule("task.name")
def _task_exists(recipe: Recipe) -> Iterator[str]:
    if recipe.task.name not in TASKS:
        near = did_you_mean(recipe.task.name, TASKS) or f"; choose one of {', '.join(TASKS)}"
        yield f"task.name: {show(recipe.task.name)} is not a task{near}"


@_rule("method.name")
def _method_exists(recipe: Recipe) -> Iterator[str]:
    if recipe.method.name not in METHODS:
        near = did_you_mean(recipe.method.name, METHODS) or f"; choose one of {', '.join(METHODS)}"
        yield f"method.name: {show(recipe.method.name)} is not a method{near}"


@_rule("method.name", "method.options")
def _options_are_the_methods(recipe: Recipe) -> Iterator[str]:
    info = METHODS.get(recipe.method.name)
    if info is None:
        return
    for name, value, option in info.option_faults(recipe.method.options):
        if option is not None:
            yield (
                f"method.options.{name}: {show(value)} received; must be {option.limits}"
                f"{did_you_mean(value, option.choices)}; the default is {show(option.default)}"
            )
        elif name in type(recipe.method).model_fields:
            yield f"method.options.{name}: not an option; it is a key of method: write method.{name}"
        else:
            names = [option.name for option in info.options]
            known = f"; its options are {', '.join(names)}" if names else "; it has none, leave it out"
            yield f"method.options.{name}: not an option of {info.name}{did_you_mean(name, names) or known}"


def _key_fits_the_task(key: str, recipe: Recipe) -> Iterator[str]:
    task = recipe.task
    if task.name not in TASKS:
        return
    needed = OWN_DATA_KEYS.get(task.name, ())
    given = getattr(task, key)
    if key in needed and given is None:
        yield f"task.{key}: missing; {task.name} reads your own data: set {', '.join(needed)}"
    elif key == "data" and given is not None and (needed or task.name in _SELF_CONTAINED):
        instead = "set train and validation instead" if needed else "leave it out"
        yield f"task.data: {show(given)} received; {task.name} does not read it; {instead}"
    elif key != "data" and key not in needed and given is not None:
        own = ", ".join(name for name, keys in OWN_DATA_KEYS.items() if key in keys and name in TASKS)
        use = f" (it is for {own})" if own else ""
        yield f"task.{key}: {show(given)} received; {task.name} does not read it{use}; leave it out"


for _key in ("data", "train", "validation", "text", "label", "prompt", "completion"):
    _rule("task.name", f"task.{_key}")(partial(_key_fits_the_task, _key))


@_rule("task.name", "task.data", "task.revision")
def _revision_is_of_the_hub(recipe: Recipe) -> Iterator[str]:
    task = recipe.task
    if task.revision is None or task.name not in TASKS:
        return
    given = f"task.revision: {show(task.revision)} received"
    if task.name == "instruction":
        yield f"{given}; instruction has it in the name of the rows, hub:NAME@REVISION:SPLIT; leave it out"
    elif task.data is not None or task.name in (*OWN_DATA_KEYS, *_SELF_CONTAINED):
        yield f"{given}; it belongs to a data set of the hub, and the rows are read from this machine; leave it out"


@_rule("task.name", "task.loss_on")
def _loss_is_of_text(recipe: Recipe) -> Iterator[str]:
    task = recipe.task
    if task.loss_on is not None and task.name in TASKS and TASKS[task.name].kind != "generation":
        yield f"task.loss_on: {show(task.loss_on)} received; {task.name} writes no text; leave it out"


@_rule("task.name", "training.packing")
def _only_conversations_are_packed(recipe: Recipe) -> Iterator[str]:
    if recipe.training.packing and recipe.task.name in TASKS and recipe.task.name != "instruction":
        yield f"training.packing: true received; {recipe.task.name} is not packed, only instruction is; leave it out"


@_rule("task.name", "generation")
def _only_text_is_decoded(recipe: Recipe) -> Iterator[str]:
    task = recipe.task
    if recipe.generation is not None and task.name in TASKS and TASKS[task.name].kind != "generation":
        writing = ", ".join(name for name, info in TASKS.items() if info.kind == "generation")
        yield f"generation: {task.name} writes no text; leave the section out (tasks that do: {writing})"


@_rule("task.name", "task.max_length")
def _row_holds_prompt_and_answer(recipe: Recipe) -> Iterator[str]:
    task = recipe.task
    if task.name in TASKS and TASKS[task.name].kind == "generation" and task.max_length < 2:
        yield f"task.max_length: {task.max_length} received; a prompt and what follows it need 2 tokens at least"


@_rule("method.name", "task.name")
def _method_can_do_the_task(recipe: Recipe) -> Iterator[str]:
    info, task = METHODS.get(recipe.method.name), TASKS.get(recipe.task.name)
    if info is not None and task is not None and task.kind not in info.kinds:
        yield (
            f"method.name: {show(info.name)} received; it cannot do {task.name}, a task of {task.kind}: {info.unable};"
            " choose another method"
        )


@_rule("task.train", "task.validation")
def _files_are_tables(recipe: Recipe) -> Iterator[str]:
    for key, name in own_files(recipe.task):
        if Path(name).suffix.lower() not in FILE_KINDS:
            yield f"task.{key}: {show(name)} received; must end in one of {', '.join(FILE_KINDS)}; convert the file"
    if recipe.task.train is not None and recipe.task.train == recipe.task.validation:
        yield f"task.validation: {show(recipe.task.validation)} is the training file too; score on rows not trained on"


@_rule("task.text", "task.label")
def _columns_differ(recipe: Recipe) -> Iterator[str]:
    text, label = recipe.task.text, recipe.task.label
    columns = [text] if isinstance(text, str) else list(text or [])
    if len(set(columns)) < len(columns):
        yield f"task.text: {show(text)} names one column twice; name two columns, or one as text"
    if label in columns:
        yield f"task.label: {show(label)} is a text column too; name the column that holds the answer"


@_rule("training.batch_size", "training.gradient_accumulation")
def _pieces_are_whole(recipe: Recipe) -> Iterator[str]:
    size, pieces = recipe.training.batch_size, recipe.training.gradient_accumulation
    if size % pieces:
        yield (
            f"training.gradient_accumulation: {pieces} received; must divide training.batch_size ({size}), the number"
            f" of examples per optimizer step; try batch_size {(size // pieces + 1) * pieces}"
        )


@_rule("training.schedule", "training.warmup_ratio")
def _constant_has_no_warmup(recipe: Recipe) -> Iterator[str]:
    if recipe.training.schedule == "constant" and recipe.training.warmup_ratio > 0:
        yield (
            f"training.warmup_ratio: {recipe.training.warmup_ratio} received; the schedule constant has no warm-up;"
            " set 0, or the schedule constant_with_warmup"
        )


@_rule("training.device")
def _device_is_known(recipe: Recipe) -> Iterator[str]:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", recipe.training.device):
        near = did_you_mean(recipe.training.device, ["auto", "cpu", "cuda", "mps"])
        yield f"training.device: {show(recipe.training.device)} received; must be auto, cpu, cuda, cuda:N or mps{near}"


@_rule("training.device", "training.precision")
def _float16_needs_an_accelerator(recipe: Recipe) -> Iterator[str]:
    if recipe.training.device == "cpu" and recipe.training.precision == "float16":
        yield 'training.precision: "float16" received; a cpu has no float16 training; use float32 or bfloat16'


@_rule("training.report_to")
def _trackers_are_known(recipe: Recipe) -> Iterator[str]:
    for tracker in recipe.training.report_to:
        if tracker not in TRACKERS:
            near = did_you_mean(tracker, TRACKERS) or f"; choose from {', '.join(TRACKERS)}, or [] for none"
            yield f"training.report_to: {show(tracker)} is not a tracker{near}"


@_rule("method.target_modules")
def _targets_are_a_pattern(recipe: Recipe) -> Iterator[str]:
    targets = recipe.method.target_modules
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            yield f"method.target_modules: {show(targets)} is not a regular expression ({error}); give a list of names"
        if may_run_for_ever(targets):
            yield (
                f"method.target_modules: {show(targets)} repeats a group that repeats itself, or is longer than 100,000"
                " characters, and may take forever to match; give a list of names"
            )


@_rule("method.name", "method.truncation", "model.quantization")
def _quantized_bases(recipe: Recipe) -> Iterator[str]:
    kind, method = recipe.model.quantization, recipe.method
    if kind == "none" or method.name not in METHODS:
        return
    if method.name == "kasa" and method.truncation == "fold":
        yield f'method.truncation: "fold" received; a {kind} base cannot be changed in place; use attach, the default'
    if "not quantized" in METHODS[method.name].bases:
        yield f'model.quantization: "{kind}" received; {method.name} needs a base that is not quantized; use none'


@_rule()
def _no_secrets(recipe: Recipe) -> Iterator[str]:
    """A recipe is kept with its run, and shown in its report."""
    for place, value in _texts(recipe.model_dump()):
        if redacted(value) != value:
            yield (
                f"{place}: {show(value)} received; it holds a password or token, and a recipe is kept with its run;"
                " leave it out and set HF_TOKEN in the environment"
            )


def _texts(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(one, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one, place)


@_rule("output")
def _output_is_a_path(recipe: Recipe) -> Iterator[str]:
    if "\0" in recipe.output:
        yield f"output: {show(recipe.output)} received; a path holds no NUL character"


def own_files(task: TaskSection) -> list[tuple[str, str]]:
    """The keys of your own data that name a file, with the name; a data set on the hub is none."""
    given = ((key, getattr(task, key)) for key in ("train", "validation"))
    return [(key, name) for key, name in given if isinstance(name, str) and not name.startswith(HUB)]
