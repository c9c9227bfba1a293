"""Plan a run from the model's configuration alone: adapted layers, parameters, memory, steps and problems."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kasatune import methods
from kasatune.data.tasks.mixture_parts import infos_by_part, parts_of_hub
from kasatune.data.tasks.table import TASKS
from kasatune.errors import InputError, KasatuneError, OutputError, RecipeError
from kasatune.evaluation.starting_adapter import read_starting_adapter, setting_faults
from kasatune.io.run_layout import WORK
from kasatune.methods import METHODS
from kasatune.methods.shared.peft_adapter import AdapterMethod
from kasatune.models.load import Pretrained, find_pretrained, require_causal
from kasatune.models.precision import with_precision
from kasatune.recipes.schema import MethodSection
from kasatune.runs.directory import check_output
from kasatune.training.calibration_cost import CalibrationCost, calibration_cost
from kasatune.training.engines.bilevel import held_back_fault
from kasatune.training.parameter_count import LayerPlan, ParameterCount, build_without_weights, count_parameters
from kasatune.training.preflight import check_files, check_rows, check_setup, has_no_weights
from kasatune.weights.usable_positions import usable_positions

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from kasatune.data.tasks.dataset import TaskData
    from kasatune.methods.shared.method import Method
    from kasatune.recipes.schema import Recipe

NO_WARMUP = "training.warmup_ratio: the run has one step, and so no warm-up: the rate of that step would be 0"
_FLOAT32_BYTES = 4
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_QUANTIZED_BYTES = {"nf4": 0.56, "int8": 1.0, "torchao-int8": 1.0}  # with the constants of each block


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        model: name, architecture, and number of parameters, including the head.
        layers: the adapted layers; empty for a method that targets none by name.
        trainable_parameters: without the head; None if unknown before the weights are loaded.
        head_parameters: of the new head.
        adapter_bytes: size of the adapter files, by their folder in the run directory.
        memory_bytes: rough peak memory by content, with its total; None if the configuration lacks the sizes.
        calibration: estimated cost of measuring the base before the first step; None if nothing is measured.
        rows: training rows that are used; None if they are not on this machine yet.
        parts: of a mixture, for each part its task, weight, training rows, rows drawn for an epoch and validation rows.
        steps_per_epoch: optimizer steps.
        steps: optimizer steps in total.
        notes: assumptions, defaults and ignored settings.
        problems: why the run would fail.
    """

    model: Mapping[str, Any]
    layers: tuple[LayerPlan, ...]
    trainable_parameters: int | None
    head_parameters: int
    adapter_bytes: Mapping[str, int]
    memory_bytes: Mapping[str, int] | None
    calibration: CalibrationCost | None = None
    rows: int | None = None
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
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

    @contextmanager
    def problem(self) -> Generator[None]:
        """Turn an error into a problem, so that the checks that follow are made too."""
        try:
            yield
        except RecipeError as error:
            self.problems += error.faults
        except KasatuneError as error:
            self.problems.append(str(error))


def make_plan(recipe: Recipe, pretrained: Pretrained | None = None, *, before_training: bool = False) -> Plan:
    """The plan of a recipe, with every problem that training would meet before its first step without the weights.

    Args:
        recipe: a validated recipe.
        pretrained: the recipe's model, already located; None to locate it now.
        before_training: leave out what training checks itself directly before or afterwards: packages, device and
            engine, files and tokenizer, and the task's rows, which give the numbers of steps and labels.

    Raises:
        ModelError: the model's configuration cannot be read, or no model can be built from it.
    """
    findings, data, setup = _Findings(), None, None
    with suppress(RecipeError):  # a device that is not available is reported by `check_setup`
        recipe, chosen = with_precision(recipe)
        findings.notes += [chosen] if chosen else []
    if not before_training:
        with findings.problem():
            setup = check_setup(recipe, Path(recipe.output) / WORK)
        _check_output(recipe, findings)
        data = _read_data(recipe, findings)
    pretrained = find_pretrained(recipe.model) if pretrained is None else pretrained
    kind = TASKS[recipe.task.name].kind
    config = copy.deepcopy(pretrained.config)
    if kind == "generation":
        require_causal(recipe.model.base_name, config)
    else:
        config.num_labels = _label_count(recipe, data)
    method = methods.load(recipe.method.name)
    model = build_without_weights(pretrained, config, kind)
    too_long = list(_exceeded_positions(recipe, usable_positions(model)))
    findings.problems += too_long
    if not before_training and not too_long:
        _check_model(recipe, pretrained, model, data, findings)
    count = count_parameters(model, method, recipe.method, kind)
    if setup is not None:
        with findings.problem():
            setup.engine.check_model(model)
    findings.problems += count.problems
    if recipe.model.adapter is not None and not count.problems:
        with findings.problem():
            _check_adapter(recipe, method, count, findings)
    if count.trained is None and not count.problems:
        findings.notes.append(f"the number of parameters that {recipe.method.name} trains follows from the weights")
    _note_unused(recipe, findings)
    stored = method.stored_numbers(count.trained or 0, [layer.shape for layer in count.layers], recipe.method)
    sizes = {folder: _FLOAT32_BYTES * (numbers + count.head) for folder, numbers in stored.items()}
    trained = (count.trained or 0) + count.head
    rows, per_epoch, steps = _steps(recipe, data)
    fault = None if rows is None else held_back_fault(method, recipe.method, rows, recipe.training.batch_size)
    findings.problems += [] if fault is None else [fault]
    if not before_training and steps == 1 and recipe.training.warmup_ratio:
        findings.notes.append(NO_WARMUP)
    return Plan(
        model={"name": recipe.model.base_name, "architecture": count.architecture, "parameters": count.total},
        layers=count.layers,
        trainable_parameters=count.trained,
        head_parameters=count.head,
        adapter_bytes={} if count.trained is None else sizes,
        memory_bytes=estimate_memory(recipe, config, count.layers, count.total, trained),
        calibration=None if before_training else _calibration(recipe, method, count, kind),
        rows=rows,
        parts={} if data is None else {part.name: part.as_dict() for part in data.parts},
        steps_per_epoch=per_epoch,
        steps=steps,
        notes=tuple(findings.notes),
        problems=tuple(findings.problems),
    )


def require_feasible(recipe: Recipe, pretrained: Pretrained | None = None) -> Plan:
    """The plan of a recipe that would not fail, made by training itself, which reads the rows and the rest later.

    Args:
        recipe: see `make_plan`.
        pretrained: see `make_plan`.

    Raises:
        InputError: every reason why the run would fail.
    """
    plan = make_plan(recipe, pretrained, before_training=True)
    if plan.problems:
        raise InputError("the run would fail:\n" + "\n".join(f"  - {problem}" for problem in plan.problems))
    return plan


def estimate_memory(
    recipe: Recipe, config: PreTrainedConfig, layers: Sequence[LayerPlan], parameters: int, trained: int
) -> dict[str, int] | None:
    """Rough peak memory of training: weights, gradients, optimizer state, activations, and their total.

    activations = layers b (17 t h + 2.5 a t^2) width, for b rows of t tokens in a micro-batch, two for a pair of
    answers, hidden size h and a heads; Korthikanti et al. (arXiv 2205.05198, eq. 1) count 34 and 5 bytes of float16.
    With gradient checkpointing: one layer in full and t h of every other. A language model adds its logits and their
    gradient, 2 b t v width, for a vocabulary of size v. AdamW holds two float32 values per trained parameter.

    Args:
        recipe: recipe of the run.
        config: the model's configuration.
        layers: the adapted layers.
        parameters: number of parameters of the model.
        trained: number of trained parameters, including the head.

    Returns:
        Bytes by content; None if the configuration lacks the sizes.
    """
    text: Any = config.get_text_config()  # of a model that also reads pictures, its language model
    sizes = [getattr(text, name, None) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")]
    if not all(isinstance(size, int) for size in sizes):
        return None
    hidden, depth, heads = (int(size or 0) for size in sizes)
    training = recipe.training
    rows = training.batch_size // training.gradient_accumulation * (2 if TASKS[recipe.task.name].rows == "pairs" else 1)
    tokens = recipe.task.max_length
    width = min(_BYTES[recipe.model.dtype], _BYTES.get(training.precision, 4))  # "auto" where no device was found
    one_layer = rows * (17 * tokens * hidden + 2.5 * heads * tokens**2) * width
    checkpointed = one_layer + depth * rows * tokens * hidden * width
    activations = checkpointed if training.gradient_checkpointing else depth * one_layer
    if recipe.generation is not None:
        activations += 2 * rows * tokens * int(getattr(text, "vocab_size", 0)) * width
    parts = {
        "weights": int(_weight_bytes(recipe, layers, hidden, depth, parameters, trained)),
        "gradients": _FLOAT32_BYTES * trained,
        "optimizer": 2 * _FLOAT32_BYTES * trained,
        "activations": int(activations),
    }
    return {**parts, "total": sum(parts.values())}


def _weight_bytes(
    recipe: Recipe, layers: Sequence[LayerPlan], hidden: int, depth: int, parameters: int, trained: int
) -> float:
    width = _BYTES[recipe.model.dtype]
    weights = float(parameters * width)
    if recipe.model.quantization != "none":
        # Quantizers skip embeddings, normalisations and head; layers that all are adapted tell the sizes exactly.
        adapted = sum(math.prod(layer.shape) for layer in layers)
        blocks = min(parameters, max(adapted, 12 * hidden**2 * depth))
        weights -= blocks * (width - _QUANTIZED_BYTES[recipe.model.quantization])
    info = METHODS[recipe.method.name]
    if info.trains_base_weights:
        return weights
    dropped = recipe.method.drop if "drop" in info.uses else None
    frozen = sum((info.frozen_rank * layer.rank if dropped is None else dropped) * sum(layer.shape) for layer in layers)
    return weights + _FLOAT32_BYTES * (trained + frozen)


def _calibration(recipe: Recipe, method: Method, count: ParameterCount, kind: str) -> CalibrationCost | None:
    needs = method.calibration(recipe.method, generates=kind == "generation")
    if needs is None or not count.layers:
        return None
    width = _BYTES[recipe.model.dtype]
    return calibration_cost(needs, count.layers, count.total, count.total * width, recipe.task.max_length)


def _read_data(recipe: Recipe, findings: _Findings) -> TaskData | None:
    hub = parts_of_hub(recipe.task)
    if hub:
        info = infos_by_part(recipe.task)[hub[0]]
        key = "train" if info.reads_own_files else "data"
        where = "task" if hub[0] == recipe.task.name else f"task.parts[{hub[0]}]"
        findings.notes.append(f"the rows of {hub[0]} come from the hub: steps are counted once {where}.{key} is set")
        return None
    from kasatune.data.tasks import load_task

    data = None
    with findings.problem():
        data = load_task(recipe.task)
        findings.notes += data.notes
    return data


def _check_output(recipe: Recipe, findings: _Findings) -> None:
    """Note an output directory that training would refuse; another one can be given to it."""
    try:
        check_output(Path(recipe.output), recipe, resume=False, overwrite=False)
    except OutputError as error:
        findings.notes.append(f"output: {error}")


def _check_model(
    recipe: Recipe, pretrained: Pretrained, model: PreTrainedModel, data: TaskData | None, findings: _Findings
) -> None:
    """Check files and tokenizer of a local model, and the first rows through its tokenizer."""
    if has_no_weights(pretrained):
        findings.notes.append(
            f"{pretrained.location.path} holds no weights: training needs them, and the tokenizer, beside the "
            "configuration"
        )
        return
    with findings.problem():
        base = check_files(pretrained, model, recipe)
        if base is not None and data is not None:
            check_rows(recipe, base, data)


def _check_adapter(recipe: Recipe, method: Method, count: ParameterCount, findings: _Findings) -> None:
    """Compare the adapter that training continues from with the recipe."""
    adapter = read_starting_adapter(str(recipe.model.adapter))
    if not isinstance(method, AdapterMethod):
        raise TypeError(f"{method.info.name} is marked as a method that continues adapters, and has none")
    faults = list(setting_faults(adapter, recipe, method, [layer.name for layer in count.layers]))
    findings.problems += faults
    if not faults:
        findings.notes.append(f"training continues the adapter in {adapter.header.folder}")


def _label_count(recipe: Recipe, data: TaskData | None) -> int:
    """The number of outputs of the head; two if the labels are only known from the rows, which were not read."""
    info = TASKS[recipe.task.name]
    names = info.label_names if data is None else data.label_names
    if names is not None:
        return len(names)
    return 2 if data is None and info.kind == "classification" else 1


def _steps(recipe: Recipe, data: TaskData | None) -> tuple[int | None, int | None, int | None]:
    """(training rows, steps per epoch, steps in total); None if unknown."""
    training = recipe.training
    if data is None:
        return None, None, training.max_steps
    rows = len(data.splits["train"].labels)
    if training.packing:
        return rows, None, training.max_steps
    per_epoch = math.ceil(rows / training.batch_size)
    return rows, per_epoch, training.max_steps or math.ceil(training.epochs * per_epoch)


def _note_unused(recipe: Recipe, findings: _Findings) -> None:
    if recipe.training.max_steps is not None:
        findings.notes.append("training.max_steps is set: training.epochs is not used")
    elif recipe.training.packing:
        findings.notes.append(
            "training.packing: the number of sequences, and so of steps, follows from the tokenized rows"
        )
    defaults = MethodSection.model_validate({})
    used = {"name", "options", *METHODS[recipe.method.name].uses}
    for key in type(recipe.method).model_fields:
        if key not in used and getattr(recipe.method, key) != getattr(defaults, key):
            findings.notes.append(f"method.{key} is not used by {recipe.method.name}")


def _exceeded_positions(recipe: Recipe, positions: int | None) -> Iterator[str]:
    if positions is None:
        return
    if recipe.task.max_length > positions:
        yield f"task.max_length: {recipe.task.max_length} received; the model has {positions} positions; lower it"
    decoding = {"generation": recipe.generation}
    for part in recipe.task.parts or ():
        decoding[f"task.parts[{part.part_name}].generation"] = part.generation
    for place, settings in decoding.items():
        if settings is not None and settings.max_new_tokens >= positions:
            yield (
                f"{place}.max_new_tokens: {settings.max_new_tokens} received; the model has {positions}"
                " positions for prompt and answer together; lower it"
            )
