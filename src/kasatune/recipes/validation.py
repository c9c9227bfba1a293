"""What the keys of a recipe must satisfy together; find_faults also reports what is missing on this machine.

Each check names the keys that it reads and is skipped if one of them is already at fault. All faults of a recipe are
therefore reported at once, and none is a consequence of another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from kasatune.data.readers.hub import HUB, parse_hub_name
from kasatune.data.tasks.mixture_parts import reads_chats
from kasatune.data.tasks.table import TASKS
from kasatune.errors import DataError
from kasatune.io.model_location import GGUF
from kasatune.methods.table import METHODS, accepted_names
from kasatune.recipes.machine_checks import INPUT_CHECKS, TRACKERS, Registered, own_files, register
from kasatune.recipes.messages import did_you_mean, show
from kasatune.recipes.mixture_checks import mixture_faults, row_sections
from kasatune.recipes.preference_checks import PREFERENCE_CHECKS
from kasatune.recipes.sections import RecipeSections
from kasatune.redaction import may_run_for_ever, redacted

FILE_KINDS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


_KEY_CHECKS: Registered = []


def find_faults(recipe: RecipeSections, faulty: Mapping[str, str], *, check_inputs: bool) -> list[str]:
    """One sentence for each fault that involves several keys, among keys that are not in `faulty`.

    Args:
        recipe: each of its keys is valid alone, or in `faulty`.
        faulty: keys that are known to be wrong, as "section.key".
        check_inputs: also check that the folders, files and packages that the recipe names exist on this machine.
    """
    sentences: list[str] = []
    for places, check in [*_KEY_CHECKS, *PREFERENCE_CHECKS, *(INPUT_CHECKS if check_inputs else ())]:
        if not any(place in faulty or place.partition(".")[0] in faulty for place in places):
            sentences += check(recipe)
    return sentences


_keys = partial(register, _KEY_CHECKS)


@_keys("task.name")
def _task_exists(recipe: RecipeSections) -> Iterator[str]:
    if recipe.task.name not in TASKS:
        near = did_you_mean(recipe.task.name, TASKS) or f"; choose one of {', '.join(TASKS)}"
        yield f"task.name: {show(recipe.task.name)} is not a task{near}"


@_keys("method.name")
def _method_exists(recipe: RecipeSections) -> Iterator[str]:
    if recipe.method.name not in METHODS:
        near = did_you_mean(recipe.method.name, accepted_names()) or f"; choose one of {', '.join(METHODS)}"
        yield f"method.name: {show(recipe.method.name)} is not a method{near}"


@_keys("method.name", "method.options")
def _options_belong_to_the_method(recipe: RecipeSections) -> Iterator[str]:
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


def _key_fits_the_task(key: str, recipe: RecipeSections) -> Iterator[str]:
    """Whether the task, and each part of a mixture, reads a key that names its rows."""
    for place, task in row_sections(recipe):
        if task.name not in TASKS:
            continue
        info = TASKS[task.name]
        given = getattr(task, key, None)
        if key in info.keys and given is None and info.reads_own_files:
            yield f"{place}.{key}: missing; {task.name} reads your own data: set {', '.join(info.keys)}"
        elif key not in info.keys and given is not None and info.rows == "mixture":
            yield f"{place}.{key}: {show(given)} received; a mixture reads it in its parts; put it into task.parts"
        elif key == "data" and key not in info.keys and given is not None:
            instead = "set train and validation instead" if info.reads_own_files else "leave it out"
            yield f"{place}.data: {show(given)} received; {task.name} does not read it; {instead}"
        elif key not in info.keys and given is not None:
            readers = ", ".join(other.name for other in TASKS.values() if key in other.keys)
            use = f" (it is for {readers})" if readers else ""
            yield f"{place}.{key}: {show(given)} received; {task.name} does not read it{use}; leave it out"


for _key in ("data", "train", "validation", "text", "label", "prompt", "completion", "corpus"):
    _keys("task.name", f"task.{_key}", "task.parts")(partial(_key_fits_the_task, _key))


@_keys("task.name", "task.retriever", "task.passages", "task.chunk_words", "task.chunk_overlap")
def _retrieval_is_for_a_corpus(recipe: RecipeSections) -> Iterator[str]:
    task = recipe.task
    info = TASKS.get(task.name)
    if info is not None and info.prompter is None:
        for key in ("retriever", "passages", "chunk_words", "chunk_overlap"):
            if getattr(task, key) != type(task).model_fields[key].default:
                yield f"task.{key}: {show(getattr(task, key))} received; {task.name} retrieves nothing; leave it out"
    elif task.chunk_overlap >= task.chunk_words:
        yield (
            f"task.chunk_overlap: {task.chunk_overlap} received; must be below task.chunk_words ({task.chunk_words})"
        )


@_keys("task.name", "task.data", "task.revision", "task.parts")
def _revision_is_for_the_hub(recipe: RecipeSections) -> Iterator[str]:
    for place, task in row_sections(recipe):
        if task.revision is None or task.name not in TASKS:
            continue
        given = f"{place}.revision: {show(task.revision)} received"
        info = TASKS[task.name]
        if info.hub_names:
            yield f"{given}; {task.name} takes it in the name of the rows, hub:NAME@REVISION:SPLIT; leave it out"
        elif info.rows == "mixture":
            yield f"{given}; a mixture reads it in its parts; put it into task.parts"
        elif task.data is not None or "revision" not in info.keys:
            yield f"{given}; it selects a revision on the hub, and these rows are read from this machine; leave it out"


_keys("task.name", "task.parts", "task.draw_seed")(mixture_faults)


@_keys("task.name", "task.loss_on")
def _loss_on_is_for_generation(recipe: RecipeSections) -> Iterator[str]:
    task = recipe.task
    if task.loss_on is not None and task.name in TASKS and TASKS[task.name].kind != "generation":
        yield f"task.loss_on: {show(task.loss_on)} received; {task.name} generates no text; leave it out"


@_keys("task.name", "task.template", "task.parts")
def _template_is_for_conversations(recipe: RecipeSections) -> Iterator[str]:
    task = recipe.task
    if task.template is not None and task.name in TASKS and not reads_chats(task):
        yield f"task.template: {show(task.template)} received; {task.name} has no conversations; leave it out"


@_keys("task.name", "training.packing")
def _packing_is_for_generation(recipe: RecipeSections) -> Iterator[str]:
    info = TASKS.get(recipe.task.name)
    if recipe.training.packing and info is not None and info.kind != "generation":
        yield (
            f"training.packing: true received; {info.name} generates no text, and its rows are not packed; leave it "
            "out, or set training.group_by_length"
        )


@_keys("training.packing", "training.group_by_length")
def _packed_rows_are_not_grouped(recipe: RecipeSections) -> Iterator[str]:
    if recipe.training.packing and recipe.training.group_by_length:
        yield "training.group_by_length: true received; training.packing fills every sequence; leave out one of them"


@_keys("task.name", "generation")
def _generation_section_is_for_generation(recipe: RecipeSections) -> Iterator[str]:
    task = recipe.task
    if recipe.generation is not None and task.name in TASKS and TASKS[task.name].kind != "generation":
        writing = ", ".join(name for name, info in TASKS.items() if info.kind == "generation")
        yield f"generation: {task.name} generates no text; leave the section out (tasks that do: {writing})"


@_keys("task.name", "task.max_length")
def _max_length_holds_prompt_and_completion(recipe: RecipeSections) -> Iterator[str]:
    task = recipe.task
    if task.name in TASKS and TASKS[task.name].kind == "generation" and task.max_length < 2:
        yield f"task.max_length: {task.max_length} received; a prompt and its completion need at least 2 tokens"


@_keys("method.name", "task.name")
def _method_can_do_the_task(recipe: RecipeSections) -> Iterator[str]:
    info, task = METHODS.get(recipe.method.name), TASKS.get(recipe.task.name)
    if info is not None and task is not None and task.kind not in info.kinds:
        yield (
            f"method.name: {show(info.name)} received; it cannot do {task.name}, a task of {task.kind}: {info.unable};"
            " choose another method"
        )


@_keys("task.train", "task.validation", "task.parts")
def _files_are_tables(recipe: RecipeSections) -> Iterator[str]:
    for place, key, name in own_files(recipe):
        if Path(name).suffix.lower() not in FILE_KINDS:
            yield f"{place}.{key}: {show(name)} received; must end in one of {', '.join(FILE_KINDS)}; convert the file"
    for place, task in row_sections(recipe):
        if task.train is not None and task.train == task.validation:
            name = show(task.validation)
            yield f"{place}.validation: {name} is the training file too; give rows that are not trained on"


@_keys("task.name", "task.train", "task.validation", "task.parts")
def _hub_names_are_complete(recipe: RecipeSections) -> Iterator[str]:
    for place, key, name in _hub_names(recipe):
        task = dict(row_sections(recipe))[place]
        if not TASKS[task.name].hub_names:
            readers = ", ".join(info.name for info in TASKS.values() if info.hub_names)
            given = f"{place}.{key}: {show(name)} received"
            yield f"{given}; {task.name} reads files; data sets of the hub are for {readers}"
            continue
        try:
            parse_hub_name(name)
        except DataError as error:
            yield f"{place}.{key}: {error}"


def _hub_names(recipe: RecipeSections) -> Iterator[tuple[str, str, str]]:
    """(place, key, name) of the rows that are data sets of the hub."""
    for place, task in row_sections(recipe):
        for key in ("train", "validation"):
            name = getattr(task, key)
            if isinstance(name, str) and name.startswith(HUB) and task.name in TASKS:
                yield place, key, name


@_keys("task.text", "task.label")
def _columns_differ(recipe: RecipeSections) -> Iterator[str]:
    text, label = recipe.task.text, recipe.task.label
    columns = [text] if isinstance(text, str) else list(text or [])
    if len(set(columns)) < len(columns):
        yield f"task.text: {show(text)} names one column twice; name two columns, or one as text"
    if label in columns:
        yield f"task.label: {show(label)} is a text column too; name the column that holds the answer"


@_keys("training.batch_size", "training.gradient_accumulation")
def _accumulation_divides_the_batch(recipe: RecipeSections) -> Iterator[str]:
    size, pieces = recipe.training.batch_size, recipe.training.gradient_accumulation
    if size % pieces:
        yield (
            f"training.gradient_accumulation: {pieces} received; must divide training.batch_size ({size}), the number"
            f" of examples per optimizer step; try batch_size {(size // pieces + 1) * pieces}"
        )


@_keys("training.schedule", "training.warmup_ratio")
def _constant_schedule_has_no_warmup(recipe: RecipeSections) -> Iterator[str]:
    if recipe.training.schedule == "constant" and recipe.training.warmup_ratio > 0:
        yield (
            f"training.warmup_ratio: {recipe.training.warmup_ratio} received; the schedule constant has no warm-up;"
            " set 0, or the schedule constant_with_warmup"
        )


@_keys("training.device")
def _device_is_known(recipe: RecipeSections) -> Iterator[str]:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", recipe.training.device):
        near = did_you_mean(recipe.training.device, ["auto", "cpu", "cuda", "mps"])
        yield f"training.device: {show(recipe.training.device)} received; must be auto, cpu, cuda, cuda:N or mps{near}"


@_keys("training.device", "training.precision")
def _float16_needs_an_accelerator(recipe: RecipeSections) -> Iterator[str]:
    if recipe.training.device == "cpu" and recipe.training.precision == "float16":
        yield 'training.precision: "float16" received; a CPU cannot train in float16; use float32 or bfloat16'


@_keys("training.report_to")
def _trackers_are_known(recipe: RecipeSections) -> Iterator[str]:
    for tracker in recipe.training.report_to:
        if tracker not in TRACKERS:
            near = did_you_mean(tracker, TRACKERS) or f"; choose from {', '.join(TRACKERS)}, or [] for none"
            yield f"training.report_to: {show(tracker)} is not a tracker{near}"


@_keys("method.target_modules")
def _target_pattern_is_valid(recipe: RecipeSections) -> Iterator[str]:
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


@_keys("method.name", "method.truncation", "model.quantization")
def _method_works_on_quantized_bases(recipe: RecipeSections) -> Iterator[str]:
    kind, method = recipe.model.quantization, recipe.method
    if kind == "none" or method.name not in METHODS:
        return
    if "truncation" in METHODS[method.name].uses and method.truncation == "fold":
        yield f'method.truncation: "fold" received; a {kind} base cannot be changed in place; use attach, the default'
    if METHODS[method.name].needs_float_base:
        yield f'model.quantization: "{kind}" received; {method.name} needs a base that is not quantized; use none'


@_keys("method.truncate_by", "method.calibration", "method.convention")
def _truncation_is_possible(recipe: RecipeSections) -> Iterator[str]:
    method = recipe.method
    source = method.calibration.source
    if method.truncate_by == "sensitivity" and source not in ("auto", "task"):
        yield (
            f"method.calibration: {show(source)} received; truncate_by: sensitivity needs the labels of training rows; "
            "use task"
        )
    if method.truncate_by not in (None, "magnitude") and method.convention == "authors":
        yield (
            f"method.truncate_by: {show(method.truncate_by)} received; convention: authors fixes which triplets are "
            "dropped; leave truncate_by out, or use convention: paper"
        )


@_keys()
def _no_secrets(recipe: RecipeSections) -> Iterator[str]:
    """A recipe is stored with its run and shown in the report, so it must not hold a password or token."""
    for place, value in _texts(recipe.model_dump()):
        if redacted(value) != value:
            yield (
                f"{place}: {show(value)} received; it holds a password or token, and a recipe is stored with its run;"
                " leave it out and set HF_TOKEN in the environment"
            )


def _texts(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    """(place, text) of every text within `value`."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _texts(entry, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry, place)


@_keys("output")
def _output_is_a_path(recipe: RecipeSections) -> Iterator[str]:
    if "\0" in recipe.output:
        yield f"output: {show(recipe.output)} received; a path holds no NUL character"


@_keys("model.adapter", "task.name", "method.name", "method.anneal", "method.init")
def _adapter_can_be_continued(recipe: RecipeSections) -> Iterator[str]:
    info, task, method = METHODS.get(recipe.method.name), TASKS.get(recipe.task.name), recipe.method
    if recipe.model.adapter is None or info is None or task is None:
        return
    given = f"model.adapter: {show(recipe.model.adapter)} received"
    if task.kind != "generation":
        yield f"{given}; {task.name} generates no text, and only tasks that do continue an adapter; leave it out"
    if not info.continues:
        able = ", ".join(other.name for other in METHODS.values() if other.continues)
        yield (
            f"method.name: {show(info.name)} received with model.adapter; the methods that continue an adapter are "
            f"{able}; a run of a LoRA method that starts from computed factors is continued with lora"
        )
    if method.anneal:
        yield f"method.anneal: {method.anneal:g} received; the component of a trained adapter stays as it is; set 0"
    if method.init != "random":
        yield f"method.init: {show(method.init)} received; model.adapter gives A and B their start; leave it out"


@_keys("model.name", "model.gguf_file", "model.quantization")
def _gguf_file_is_used(recipe: RecipeSections) -> Iterator[str]:
    model = recipe.model
    is_file = model.name.lower().endswith(GGUF)
    if model.gguf_file is not None and is_file:
        yield f"model.gguf_file: {show(model.gguf_file)} received; model.name is a GGUF file already; leave one out"
    elif model.gguf_file is not None and not model.gguf_file.lower().endswith(GGUF):
        yield f"model.gguf_file: {show(model.gguf_file)} received; must name a {GGUF} file in the model's folder"
    if model.quantization != "none" and (is_file or model.gguf_file is not None):
        yield (
            f'model.quantization: "{model.quantization}" received; the weights of a GGUF file are dequantized when they'
            " are loaded and cannot be quantized again; use none"
        )
