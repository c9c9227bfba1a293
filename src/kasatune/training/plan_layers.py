"""Which layers of a model an adapter would act on, found by name and shape on a model without weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kasatune.methods.shared.method import MethodSettings

_MOST_NAMED = 5


@dataclass(frozen=True)
class LayerPlan:
    """One adapted layer.

    Attributes:
        name: in the model.
        kind: its class.
        shape: (out, in) of its weight.
        rank: of the update.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    rank: int


def match(
    model: PreTrainedModel, settings: MethodSettings, head: str | None
) -> tuple[tuple[LayerPlan, ...], list[str]]:
    """The layers that `settings.target_modules` names, and what is wrong with them in sentences.

    Args:
        model: on any device, meta included.
        settings: the method's.
        head: name of the newly made head, which is trained whole and never adapted; None where there is none.
    """
    targets = _resolve(model, settings.target_modules)
    if targets is None:
        return (), [
            f'method.target_modules: "default" received; PEFT has no default for the model type'
            f" {model.config.model_type!r}; name the layers, or use all-linear"
        ]
    own = None if head is None else f"{head}."
    modules = {
        name: module for name, module in model.named_modules() if name and not (own and f"{name}.".startswith(own))
    }
    if targets == "all-linear":
        outputs = model.get_output_embeddings()
        names = [name for name, module in modules.items() if _shape(module) and module is not outputs]
        unmatched = []
    elif isinstance(targets, str):
        names = [name for name in modules if re.fullmatch(targets, name)]
        unmatched = []
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
        problems += _too_large(layers)
    return tuple(layers), problems


def _resolve(model: PreTrainedModel, targets: str | Sequence[str]) -> str | Sequence[str] | None:
    if targets == "default":
        return TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
    return targets


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a layer that can be adapted."""
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


def _too_large(layers: list[LayerPlan]) -> list[str]:
    bad = [layer for layer in layers if layer.rank >= min(layer.shape)]
    if not bad:
        return []
    named = ", ".join(layer.name for layer in bad[:_MOST_NAMED]) + (" and others" if len(bad) > _MOST_NAMED else "")
    limit = min(min(layer.shape) for layer in bad)
    return [f"method.r: {bad[0].rank} received; must be below min(out, in) = {limit} of {named}; lower it"]
