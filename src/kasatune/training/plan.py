"""What a run would adapt, cost and trip over, from the model's configuration alone: no weight is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from kasatune import methods
from kasatune.data.tasks.table import TASKS
from kasatune.errors import InputError, KasatuneError, ModelError
from kasatune.io.library_noise import quiet
from kasatune.methods import METHODS
from kasatune.methods.shared.method import Method
from kasatune.methods.shared.model_parts import head_name
from kasatune.models.load import find_model, model_family, require_causal, why_not
from kasatune.training.plan_layers import LayerPlan, match
from kasatune.training.plan_memory import estimate

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from kasatune.data.tasks.dataset import TaskData
    from kasatune.recipes.schema import Recipe

_FLOAT32 = 4


@dataclass(frozen=True)
class Plan:
    """A run before it happens.

    Attributes:
        model: architecture and number of its parameters, the head included.
        layers: the adapted layers; empty for methods that adapt none by name.
        trainable_parameters: without the head; None where it is known only once weights are loaded.
        head_parameters: of the newly made head.
        adapter_bytes: size of each adapter file, by its folder in the run directory.
        memory_bytes: rough peak memory by what it holds, and in all; None where the architecture hides its sizes.
        rows: training rows that are used; None where they are not here yet.
        steps_per_epoch: optimizer steps.
        steps: optimizer steps in all.
        notes: what is assumed, defaulted or ignored.
        problems: what would make the run fail.
    """

    model: Mapping[str, Any]
    layers: tuple[LayerPlan, ...]
    trainable_parameters: int | None
    head_parameters: int
    adapter_bytes: Mapping[str, int]
    memory_bytes: Mapping[str, int] | None
    rows: int | None = None
    steps_per_epoch: int | None = None
    steps: int | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


@dataclass
class _Findings:
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def make_plan(recipe: Recipe, *, read_data: bool = True) -> Plan:
    """The plan of a recipe.

    Args:
        recipe: checked.
        read_data: also read the task's rows, where they are on this machine, to count steps and labels.

    Raises:
        ModelError: the model's configuration cannot be had, or no model can be built from it.
    """
    found = _Findings()
    data = _read(recipe, found) if read_data else None
    config = _config(recipe)
    kind = TASKS[recipe.task.name].kind
    writes = kind == "generation"
    if writes:
        require_causal(recipe.model.name, config)
    else:
        config.num_labels = _labels(recipe, data)
    model = _build(recipe, config, kind)
    head = None if writes else head_name(model)
    method = methods.load(recipe.method.name)
    layers: tuple[LayerPlan, ...] = ()
    unsuitable: list[str] = []
    if "target_modules" in method.info.uses:
        layers, unsuitable = match(model, recipe.method, head)
    found.problems += unsuitable
    total = sum(parameter.numel() for parameter in model.parameters())
    head_parameters = sum(parameter.numel() for parameter in model.get_submodule(head).parameters()) if head else 0
    trained = None if unsuitable else _trained(method, recipe, model, head, found)
    numbers = method.stored_numbers(trained or 0, [layer.shape for layer in layers], recipe.method)
    _check_limits(recipe, config, found)
    rows, per_epoch, steps = _steps(recipe, data)
    return Plan(
        model={"name": recipe.model.name, "architecture": type(model).__name__, "parameters": total},
        layers=layers,
        trainable_parameters=trained,
        head_parameters=head_parameters,
        adapter_bytes={} if trained is None else _bytes(numbers, head_parameters),
        memory_bytes=estimate(recipe, config, layers, total, (trained or 0) + head_parameters),
        rows=rows,
        steps_per_epoch=per_epoch,
        steps=steps,
        notes=tuple(found.notes),
        problems=tuple(found.problems),
    )


def require_feasible(recipe: Recipe) -> Plan:
    """The plan of a recipe that nothing speaks against, made without reading rows or weights.

    Raises:
        InputError: every reason why the run would fail.
    """
    plan = make_plan(recipe, read_data=False)
    if plan.problems:
        raise InputError("the run would fail:\n" + "\n".join(f"  - {problem}" for problem in plan.problems))
    return plan


def _read(recipe: Recipe, found: _Findings) -> TaskData | None:
    if TASKS[recipe.task.name].reads_hub(recipe.task):
        key = "train" if TASKS[recipe.task.name].reads_own_files else "data"
        found.notes.append(
            f"the rows of {recipe.task.name} come from the hub: steps are counted once task.{key} is set"
        )
        return None
    from kasatune.data.tasks import load_task

    try:
        data = load_task(recipe.task)
    except KasatuneError as error:
        found.problems.append(str(error))
        return None
    found.notes += data.notes
    return data


def _labels(recipe: Recipe, data: TaskData | None) -> int:
    """Outputs of the head; two if only the rows tell the labels and were not read."""
    info = TASKS[recipe.task.name]
    names = info.label_names if data is None else data.label_names
    if names is not None:
        return len(names)
    return 2 if data is None and info.kind == "classification" else 1


def _config(recipe: Recipe) -> PreTrainedConfig:
    section = recipe.model
    folder = find_model(section.name)
    try:
        with quiet():
            return AutoConfig.from_pretrained(
                folder, revision=section.revision, trust_remote_code=section.trust_remote_code
            )
    except Exception as error:  # transformers and the hub client raise dozens of unrelated types
        raise ModelError(f"model.name: {section.name} cannot be loaded: {why_not(error, folder)}") from error


def _build(recipe: Recipe, config: PreTrainedConfig, kind: str) -> PreTrainedModel:
    """The model with its head, every weight without storage."""
    try:
        with quiet(), torch.device("meta"):
            return model_family(kind).from_config(config, trust_remote_code=recipe.model.trust_remote_code)
    except Exception as error:  # whatever an architecture's constructor raises for a configuration it cannot take
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model.name: {recipe.model.name}: no model for {recipe.task.name} can be built from it ({reason})"
        ) from error


def _trained(method: Method, recipe: Recipe, model: PreTrainedModel, head: str | None, found: _Findings) -> int | None:
    """Trainable parameters without the head."""
    try:
        with quiet():
            kind = TASKS[recipe.task.name].kind
            trained = method.trained_parameters(model, recipe.method, kind, [head] if head else [])
    except KasatuneError as error:
        found.problems.append(str(error))
        return None
    if trained is None:
        found.notes.append(f"the number of parameters that {recipe.method.name} trains follows from the weights")
    return trained


def _bytes(numbers: Mapping[str, int], head_parameters: int) -> dict[str, int]:
    """The size of each folder of float32 files, the head included."""
    return {folder: _FLOAT32 * (count + head_parameters) for folder, count in numbers.items()}


def _steps(recipe: Recipe, data: TaskData | None) -> tuple[int | None, int | None, int | None]:
    """(rows, steps per epoch, steps in all)."""
    training = recipe.training
    if data is None:
        return None, None, training.max_steps
    rows = len(data.splits["train"].labels)
    per_epoch = math.ceil(rows / training.batch_size)
    return rows, per_epoch, training.max_steps or math.ceil(training.epochs * per_epoch)


def _check_limits(recipe: Recipe, config: PreTrainedConfig, found: _Findings) -> None:
    for problem in _limits(recipe, config):
        found.problems.append(problem)
    if recipe.training.max_steps is not None:
        found.notes.append("training.max_steps is set: training.epochs is not used")
    defaults = type(recipe.method)()
    used = {"name", "options", *METHODS[recipe.method.name].uses}
    for key in type(recipe.method).model_fields:
        if key not in used and getattr(recipe.method, key) != getattr(defaults, key):
            found.notes.append(f"method.{key} is not used by {recipe.method.name}")


def _limits(recipe: Recipe, config: PreTrainedConfig) -> Iterator[str]:
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and recipe.task.max_length > positions:
        yield f"task.max_length: {recipe.task.max_length} received; the model has {positions} positions; lower it"
    if isinstance(positions, int) and recipe.generation is not None and recipe.generation.max_new_tokens >= positions:
        yield (
            f"generation.max_new_tokens: {recipe.generation.max_new_tokens} received; the model has {positions}"
            " positions for prompt and answer together; lower it"
        )
