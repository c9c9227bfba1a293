"""Count the layers that a method adapts and the parameters that it trains, on a model without weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from kasatune.data.tasks.task_info import TaskKind
from kasatune.errors import KasatuneError, ModelError
from kasatune.io.library_noise import quiet
from kasatune.methods.shared.method import Method
from kasatune.methods.shared.model_parts import head_name
from kasatune.methods.table import METHODS
from kasatune.models.load import Pretrained, model_family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from kasatune.methods.shared.method import MethodSettings

_MAX_NAMED = 5


@dataclass(frozen=True)
class LayerPlan:
    """One adapted layer.

    Attributes:
        name: its name in the model.
        kind: its class.
        shape: (out, in) of its weight.
        rank: of the update.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    rank: int


@dataclass(frozen=True)
class ParameterCount:
    """The layers that a method adapts and the parameters that it trains in a model.

    Attributes:
        architecture: class of the model.
        total: parameters of the model, including the head.
        head: parameters of the new head.
        trained: parameters that are trained, without the head; None if unknown before the weights are loaded.
        layers: the adapted layers; empty for a method that targets none by name.
        problems: why the method cannot be attached.
    """

    architecture: str
    total: int
    head: int
    trained: int | None
    layers: tuple[LayerPlan, ...]
    problems: tuple[str, ...]


def build_without_weights(pretrained: Pretrained, config: PreTrainedConfig, kind: TaskKind) -> PreTrainedModel:
    """The model with its head on the meta device, with no storage behind its weights.

    Args:
        pretrained: the recipe's model.
        config: its configuration, with the number of labels of the task.
        kind: kind of the task.

    Raises:
        ModelError: no model for the task can be built from the configuration.
    """
    section = pretrained.section
    try:
        with quiet(), torch.device("meta"):
            return model_family(kind).from_config(config, trust_remote_code=section.trust_remote_code)
    except Exception as error:  # architectures raise any exception for a configuration that they cannot use
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model.name: {section.name}: no model for {kind} can be built from it ({reason}); name another model"
        ) from error


def count_parameters(
    model: PreTrainedModel, method: Method, settings: MethodSettings, kind: TaskKind
) -> ParameterCount:
    """Attach the method to a model without weights, and count.

    Args:
        model: the result of `build_without_weights`; changed.
        method: the recipe's method.
        settings: the recipe's section `method`.
        kind: kind of the task.
    """
    head = None if kind == "generation" else head_name(model)
    architecture, total = type(model).__name__, _size(model)
    head_size = _size(model.get_submodule(head)) if head else 0
    layers: tuple[LayerPlan, ...] = ()
    problems: list[str] = []
    if "target_modules" in method.info.uses:
        layers, problems = find_target_layers(model, settings, head)
    trained = None
    if not problems:
        try:
            with quiet():
                trained = method.trained_parameters(model, settings, kind, [head] if head else [])
        except KasatuneError as error:
            problems.append(str(error))
    return ParameterCount(architecture, total, head_size, trained, layers, tuple(problems))


def find_target_layers(
    model: PreTrainedModel, settings: MethodSettings, head: str | None
) -> tuple[tuple[LayerPlan, ...], list[str]]:
    """The layers that `settings.target_modules` selects, and the problems with the selection, one sentence each.

    Args:
        model: on any device, including meta.
        settings: the recipe's section `method`.
        head: name of the new head, which is trained in full and never adapted; None if there is none.
    """
    targets = _resolve(model, settings.target_modules)
    if targets is None:
        return (), [
            f'method.target_modules: "default" received; PEFT has no default for the model type'
            f" {model.config.model_type!r}; name the layers, or use all-linear"
        ]
    head_prefix = None if head is None else f"{head}."
    modules = {
        name: module
        for name, module in model.named_modules()
        if name and not (head_prefix and f"{name}.".startswith(head_prefix))
    }
    unmatched: list[str] = []
    if targets == "all-linear":
        outputs = model.get_output_embeddings()
        names = [name for name, module in modules.items() if _shape(module) and module is not outputs]
    elif isinstance(targets, str):
        names = [name for name in modules if re.fullmatch(targets, name)]
    else:
        names = [name for name in modules if any(_ends(name, target) for target in targets)]
        unmatched = [target for target in targets if not any(_ends(name, target) for name in names)]
    problems = _unmatched(modules, names, unmatched, settings.target_modules)
    layers = []
    for name in names:
        shape = _shape(modules[name])
        if shape is None:
            problems.append(
                f"method.target_modules: {name} is a {type(modules[name]).__name__};"
                " Linear and Conv1D layers can be adapted; leave it out"
            )
        else:
            layers.append(LayerPlan(name, type(modules[name]).__name__, shape, settings.r))
    if METHODS[settings.name].drops_triplets:
        problems += _rank_too_large(layers)
    return tuple(layers), problems


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _resolve(model: PreTrainedModel, targets: str | Sequence[str]) -> str | Sequence[str] | None:
    if targets == "default":
        return TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    return targets


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a layer that can be adapted; None for another module."""
    if isinstance(module, Conv1D):
        return module.weight.shape[1], module.weight.shape[0]
    return (module.out_features, module.in_features) if isinstance(module, nn.Linear) else None


def _unmatched(
    modules: Mapping[str, nn.Module], names: list[str], unmatched: list[str], targets: str | Sequence[str]
) -> list[str]:
    if names and not unmatched:
        return []
    endings = sorted({name.rpartition(".")[2] for name, module in modules.items() if _shape(module)})
    wrong = ", ".join(unmatched) if unmatched else str(targets)
    return [f"method.target_modules: {wrong} matches no layer; the layers end in: {', '.join(endings)}"]


def _rank_too_large(layers: list[LayerPlan]) -> list[str]:
    too_small = [layer for layer in layers if layer.rank >= min(layer.shape)]
    if not too_small:
        return []
    named = ", ".join(layer.name for layer in too_small[:_MAX_NAMED])
    named += " and others" if len(too_small) > _MAX_NAMED else ""
    limit = min(min(layer.shape) for layer in too_small)
    return [f"method.r: {too_small[0].rank} received; must be below min(out, in) = {limit} of {named}; lower it"]
