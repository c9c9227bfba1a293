"""`AdapterMethod`: shared code of the methods whose result is a PEFT adapter in `adapter/` (or `kasa/`)."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, ModulesToSaveWrapper, TaskType
from torch import nn
from transformers.pytorch_utils import Conv1D

from kasatune.errors import AdapterError, KasatuneError, ModelError
from kasatune.io.run_layout import ADAPTER, CARD
from kasatune.methods.shared.method import Method, MethodSettings, TaskKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TASK_TYPES = {
    "classification": TaskType.SEQ_CLS,
    "regression": TaskType.SEQ_CLS,
    "generation": TaskType.CAUSAL_LM,
}
# PEFT adds these two names to `modules_to_save` of every SEQ_CLS adapter, and again at each load.
_ADDED_BY_PEFT = ("classifier", "score")


class AdapterMethod(Method):
    """A method whose trained state is one PEFT adapter; newly initialized modules are in its `modules_to_save`."""

    folder = ADAPTER

    @abstractmethod
    def config(self, settings: MethodSettings, targets: list[str] | str | None, common: dict[str, Any]) -> PeftConfig:
        """The adapter's configuration; `common` holds `task_type` and `modules_to_save`, which must be passed on."""

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        common = {
            "task_type": _TASK_TYPES[kind],
            "modules_to_save": [name for name in new_modules if name not in _ADDED_BY_PEFT] or None,
        }
        try:
            wrapped = get_peft_model(model, self.config(settings, self.targets(model, settings), common))
        except KasatuneError:
            raise
        except (ValueError, TypeError) as fault:  # PEFT raises either for a layer that a tuner cannot adapt
            raise ModelError(
                f"method.target_modules: {settings.target_modules!r} cannot be adapted by {self.info.name}: {fault} "
                f"The linear layers of {type(model).__name__} end in: {_linear_endings(model)}."
            ) from fault
        if "target_modules" in self.info.uses:
            check_every_target(wrapped, settings.target_modules)
        return wrapped

    def targets(self, model: PreTrainedModel, settings: MethodSettings) -> list[str] | str | None:
        """The layers to adapt, in PEFT's form. For all methods, "default" is PEFT's choice for LoRA."""
        if settings.target_modules == "default":
            return TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)
        return settings.target_modules if isinstance(settings.target_modules, str) else list(settings.target_modules)

    def stored_numbers(
        self, trained: int, shapes: Sequence[tuple[int, int]], settings: MethodSettings
    ) -> dict[str, int]:
        """See `Method.stored_numbers`."""
        return {self.folder: trained}

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        """See `Method.disabled`."""
        if self.info.disable:
            return super().disabled(model)
        return as_peft_model(model).disable_adapter()

    def merge(self, model: nn.Module) -> nn.Module:
        """See `Method.merge`; `model` cannot be used afterwards."""
        if self.info.merge:
            return super().merge(model)
        merged: nn.Module = as_peft_model(model).merge_and_unload()
        for name, module in list(merged.named_modules()):
            if isinstance(module, ModulesToSaveWrapper):  # some PEFT tuners do not unwrap it
                merged.set_submodule(name, module.modules_to_save["default"])
        return merged

    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        """See `Method.save`."""
        save_peft(model, run_dir / self.folder, base_name)

    def load(self, base: PreTrainedModel, run_dir: Path, settings: MethodSettings) -> nn.Module:
        """See `Method.load`."""
        return load_peft(base, run_dir / self.folder)


def as_peft_model(model: nn.Module) -> PeftModel:
    """The model that `AdapterMethod.attach` or `load` returned, as the type that it has.

    Raises:
        TypeError: it is not a PeftModel.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"model must be a PeftModel, got {type(model).__name__}")
    return model


def targeted_layers(model: nn.Module) -> list[str]:
    """The names of the layers of the base that the adapter of a PeftModel changes."""
    tuner = as_peft_model(model).base_model
    return tuner.targeted_module_names if isinstance(tuner, BaseTuner) else []


def _linear_endings(model: nn.Module) -> str:
    linear = (nn.Linear, Conv1D)
    return ", ".join(sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, linear)}))


def check_every_target(model: nn.Module, target_modules: str | Sequence[str]) -> None:
    """Check that every listed target matches an adapted layer; PEFT accepts a list if any of its names matches.

    Raises:
        ModelError: a name matches no layer.
    """
    if isinstance(target_modules, str):
        return
    adapted = targeted_layers(model)
    unmatched = [name for name in target_modules if not any(f".{layer}".endswith(f".{name}") for layer in adapted)]
    if unmatched:
        endings = sorted({layer.rsplit(".", 1)[-1] for layer in adapted})
        raise ModelError(
            f"method.target_modules: {', '.join(unmatched)} match no layer of the model; "
            f"those that matched end in: {', '.join(endings)}. Remove or correct the names."
        )


def save_peft(model: nn.Module, folder: Path, base_name: str) -> None:
    """Write the adapter with `base_name` as its base; the bytes do not depend on the order of Python's sets."""
    model = as_peft_model(model)
    model.peft_config["default"].base_model_name_or_path = base_name
    # The default "auto" asks the hub whether the base's vocabulary has another size; it is never resized here.
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / CARD).unlink()  # PEFT's empty model card; the run writes its own
    sort_config(folder)


def sort_config(folder: Path) -> None:
    """Rewrite adapter_config.json with sorted keys and sorted lists of text, which PEFT holds as sets."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[key] = sorted(set(value))
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def load_peft(base: PreTrainedModel, folder: Path) -> PeftModel:
    """`base` with the adapter in `folder`.

    Raises:
        AdapterError: a file is missing or damaged, or belongs to another base.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise AdapterError(f"{folder} holds no {name}; give the run directory of a finished run")
    try:
        return PeftModel.from_pretrained(base, str(folder))
    except KasatuneError:
        raise
    except Exception as fault:  # safetensors and PEFT raise many unrelated types for a damaged file
        reason = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        raise AdapterError(
            f"{folder} cannot be loaded on {type(base).__name__}: {reason}. Its files are truncated or "
            "were edited; copy them again, or train again"
        ) from fault
