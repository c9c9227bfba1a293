"""Recipes: everything that decides a run, checked as a whole before anything is loaded.

A recipe has the sections `model`, `task`, `method` and `training` and the key `output`. Reading one reports every fault
of it at once. What was read is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

from kasatune.data.tasks.table import TASKS
from kasatune.errors import RecipeError
from kasatune.methods.table import METHODS
from kasatune.recipes.checks import contradictions
from kasatune.recipes.inputs import missing_inputs
from kasatune.recipes.messages import sentences, show
from kasatune.recipes.yaml_io import dump_yaml, parse_yaml, read_recipe_text


def _whole(value: Any) -> Any:
    """1e3 is written like a float and means a whole number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _no_dropout(value: float | None) -> float | None:
    if value:
        raise ValueError("null (the model's own) or 0")
    return value


Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(ge=0)]
Amount = Annotated[float, Field(gt=0), AfterValidator(_whole)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(_Section):
    """The base model: `name` is a hub id, a folder, or package:NAME for a model that an installed package brings."""

    name: Text = Field(description="name a base model: a hub id, a folder, or package:NAME")
    revision: Text | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["none", "nf4", "int8", "torchao-int8"] = "none"
    dropout: Annotated[float | None, AfterValidator(_no_dropout)] = None
    trust_remote_code: bool = False


class TaskSection(_Section):
    """The task and its rows; `train` to `completion` belong to your own data. Lengths are in tokens, sizes in rows.

    `revision` is that of a benchmark's data set on the hub; a run keeps the commit that it read. `validation` is a
    file, or the share of the training rows to keep for it. `loss_on` is for tasks that write text: "completion" (their
    default) learns what follows the prompt, "everything" the prompt too.
    """

    name: Text = Field(description="name a task of `kasatune list tasks`")
    data: Text | None = None
    revision: Text | None = None
    train: Text | None = None
    validation: Text | Share | None = None
    text: Text | Annotated[list[Text], Field(min_length=1, max_length=2)] | None = None
    label: Text | None = None
    prompt: Text | None = None
    completion: Text | None = None
    loss_on: Literal["completion", "everything"] | None = None
    max_length: Count = 128
    max_train: Count | None = None
    max_eval: Count | None = None


class MethodSection(_Section):
    """The fine-tuning method; `convention` to `tails` are KaSA's own, `options` holds those of any other method.

    `tails` is a directory that `kasatune decompose` wrote.
    """

    name: Text = "kasa"
    r: Count = 8
    alpha: Amount = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    use_rslora: bool = False
    target_modules: Text | Annotated[list[Text], Field(min_length=1)] = "default"
    convention: Literal["paper", "authors"] = "paper"
    core: Literal["diagonal", "dense"] = "diagonal"
    truncation: Literal["attach", "fold"] = "attach"
    beta: Rate = 1e-4
    gamma: Rate = 1e-3
    tails: Text | None = None
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _complete_options(cls, values: Any) -> Any:
        """Fill in the defaults of the method's own options; what they may be is checked with the whole recipe."""
        if not isinstance(values, Mapping):
            return values
        info, given = METHODS.get(str(values.get("name", "kasa"))), values.get("options")
        if info is None or not (given is None or isinstance(given, Mapping)):
            return values
        return {**values, "options": info.complete(given or {})}


class TrainingSection(_Section):
    """The training; `batch_size` is examples per optimizer step, cut into `gradient_accumulation` pieces.

    `max_steps`, where it is set, replaces `epochs`. `packing` is for the task instruction: rows share a sequence of
    `task.max_length` tokens, without seeing each other.
    """

    epochs: Amount = 3
    max_steps: Count | None = None
    batch_size: Count = 32
    gradient_accumulation: Count = 1
    eval_batch_size: Count = 64
    learning_rate: Rate = 5e-4
    head_learning_rate: Rate | None = None
    weight_decay: Rate = 0.0
    warmup_ratio: Fraction = 0.06
    schedule: Literal["linear", "cosine", "polynomial", "inverse_sqrt", "constant_with_warmup", "constant"] = "linear"
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    packing: bool = False
    seed: Annotated[int, BeforeValidator(_whole), Field(ge=0, le=2**32 - 1)] = 0
    select: Literal["best", "last"] = "best"
    device: Text = "auto"
    report_to: Annotated[list[Text], BeforeValidator(_listed)] = []


class GenerationSection(_Section):
    """How text is written once training is done: greedy search, or beams; no token is ever drawn.

    A task may have defaults of its own. `training.eval_batch_size` prompts are answered at a time. A beam's score is
    the sum of its log-probabilities over its length to the power `length_penalty`; n-grams of `no_repeat_ngram_size`
    tokens are written once, 0 sets no limit.
    """

    max_new_tokens: Count = 64
    num_beams: Count = 1
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = 1.0
    no_repeat_ngram_size: Annotated[int, BeforeValidator(_whole), Field(ge=0)] = 0


_OPTIONS = "options."
SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelSection,
    "task": TaskSection,
    "method": MethodSection,
    "training": TrainingSection,
    "generation": GenerationSection,
}


class Recipe(_Section):
    """Everything that decides a run. `Recipe.model_validate(mapping)` checks it and raises RecipeError."""

    model: ModelSection
    task: TaskSection
    method: MethodSection
    training: TrainingSection
    generation: GenerationSection | None = None
    output: Text

    @model_serializer(mode="wrap")
    def _without_null(self, write: Any) -> dict[str, Any]:
        """`generation` is written only where text is."""
        return {key: value for key, value in write(self).items() if value is not None}

    @classmethod
    def model_validate(cls, obj: Any, *, source: str = "recipe", check_inputs: bool = False, **_: Any) -> Self:
        """The recipe that a mapping describes, defaults filled in.

        Args:
            obj: sections by name.
            source: where it came from, for the error message.
            check_inputs: also look whether the folders, files and packages that it names are there.

        Raises:
            RecipeError: every fault at once.
        """
        if not isinstance(obj, Mapping):
            what = "it is empty" if obj is None else f"it holds {show(obj)}"
            raise RecipeError([f"not a recipe: {what}; write sections such as `task: {{name: glue/rte}}`"], source)
        values = _with_defaults(obj)
        faults: dict[str, str] = {}
        try:
            recipe = super().model_validate(values)
        except ValidationError as error:
            faults = sentences(error.errors(include_url=False), values, SECTIONS)
            recipe = super().model_validate(_without(values, faults))
        also = contradictions(recipe, faults)
        if check_inputs:
            also += missing_inputs(recipe, faults)
        if faults or also:
            raise RecipeError([*faults.values(), *also], source)
        return recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, check_inputs: bool = False) -> Recipe:
    """The recipe in the YAML file `path`, changed by `overrides` such as "training.seed=1".

    Args:
        path: the file.
        overrides: "section.key=value" each, or "output=value", the value written in YAML.
        check_inputs: also look whether the folders, files and packages that it names are there. Left out for a recipe
            that was saved with a run: the run can be used after its training data has moved.

    Raises:
        RecipeError: every fault of the file and of the overrides at once.
    """
    source = str(path)
    text = read_recipe_text(Path(path))
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise RecipeError([str(error)], source) from error
    if not isinstance(values, dict):
        return Recipe.model_validate(values, source=source)
    faults = apply_overrides(values, overrides)
    try:
        recipe = Recipe.model_validate(values, source=source, check_inputs=check_inputs)
    except RecipeError as error:
        raise RecipeError([*faults, *error.faults], source) from error
    if faults:
        raise RecipeError(faults, source)
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """`recipe` as YAML, every default filled in, keys in a fixed order."""
    return dump_yaml(recipe.model_dump())


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Put each "section.key=value" into `values`; the faults of those that are no such thing.

    Another method by "method.name=..." leaves behind the options of the method that it replaces.
    """
    faults = []
    _leave_options(values, overrides)
    given: dict[str, str] = {}
    for override in overrides:
        place, equals, text = override.partition("=")
        section, dot, key = place.partition(".")
        option = key.removeprefix(_OPTIONS) if section == "method" and key.startswith(_OPTIONS) else None
        nested = "." in key if option is None else not option or "." in option
        if not equals or not section or (dot and not key) or nested or (section in SECTIONS and not key):
            faults.append(f"override {show(override)}: must be section.key=value, for example training.seed=1")
            continue
        if place in given:
            faults.append(f"override {show(override)}: {place} was already given as {show(given[place])}; keep one")
            continue
        given[place] = text
        try:
            value = parse_yaml(text)
        except ValueError as error:
            faults.append(f"override {show(override)}: the value is not YAML ({error}); quote it")
            continue
        if option is not None:
            method = values.get("method") or {}
            options = method.get("options") if isinstance(method, dict) else None
            if isinstance(method, dict) and isinstance(options, dict | None):
                values["method"] = {**method, "options": {**(options or {}), option: value}}
        elif not key:
            values[section] = value
        elif isinstance(values.get(section), dict):
            values[section][key] = value
        elif values.get(section) is None:
            values[section] = {key: value}
    return faults


def _leave_options(values: dict[str, Any], overrides: Sequence[str]) -> None:
    method = values.get("method")
    names = [text for place, _, text in (override.partition("=") for override in overrides) if place == "method.name"]
    if isinstance(method, dict) and names and names[0] != method.get("name", "kasa"):
        values["method"] = {key: value for key, value in method.items() if key != "options"}


def _with_defaults(obj: Mapping[Any, Any]) -> dict[str, Any]:
    """`obj` with text keys, an empty mapping for each section left out, and the output that its names suggest."""
    values = {str(key): value for key, value in obj.items()}
    for section in SECTIONS:
        given = values.get(section)
        values[section] = {str(key): one for key, one in given.items()} if isinstance(given, Mapping) else given
        if given is None and section != "generation":
            values[section] = {}
    _complete_generation(values)
    if values.get("output") is None:
        task, method = values["task"], values["method"]
        names = [section.get("name") if isinstance(section, dict) else None for section in (task, method)]
        values["output"] = f"runs/{str(names[0]).rpartition('/')[2]}-{names[1] or 'kasa'}"
    training = values["training"]
    if isinstance(training, dict) and training.get("schedule") == "constant":
        training.setdefault("warmup_ratio", 0.0)
    return values


def _complete_generation(values: dict[str, Any]) -> None:
    """The task's own defaults of decoding, and the loss on completions, where the task writes text."""
    task = values["task"]
    info = TASKS.get(str(task.get("name"))) if isinstance(task, dict) else None
    if info is None or info.kind != "generation":
        return
    if task.get("loss_on") is None:
        values["task"] = {**task, "loss_on": "completion"}
    given = values["generation"]
    if given is None or isinstance(given, dict):
        values["generation"] = {**info.decoding, **(given or {})}


def _without(values: dict[str, Any], faults: Mapping[str, str]) -> dict[str, Any]:
    """`values` without its faulty keys, so that what is left can be checked too."""
    kept = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for place in faults:
        section, _, key = place.partition(".")
        if key:
            kept[section].pop(key, None)
        elif section in SECTIONS:
            kept[section] = {}
        else:
            kept.pop(section)
    kept.setdefault("output", "unknown")
    for section in ("model", "task"):
        kept[section].setdefault("name", "unknown")
    return kept
