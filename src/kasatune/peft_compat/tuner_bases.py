"""Base classes of our tuners and their layers: PEFT's, with what PEFT before 0.21 lacks.

`Tuner` is PEFT's BaseTuner and `TunerLayer` its BaseTunerLayer. Before PEFT 0.21, `Tuner` also has the class methods by
which a tuner selects the tensors to save and finds the keys to load, and save_and_load.py lets PEFT call them. Before
PEFT 0.20, `TunerLayer` also keeps parameters frozen that `frozen_peft_weight_names` lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

_PEFT_PREFIX = "base_model.model."
_FSDP_NAME = "_fsdp_wrapped_module."

HAS_STATE_DICT_HOOKS = hasattr(BaseTuner, "_get_adapter_state_dict")
"""Whether PEFT's functions for saving and loading call the tuner: since 0.21."""

HAS_FROZEN_PARAMETERS = hasattr(BaseTunerLayer, "_freeze_non_trainable_peft_weights")
"""Whether PEFT's layers keep the parameters frozen that they list in `frozen_peft_weight_names`: since 0.20."""


class HookedTuner(BaseTuner):
    """A tuner with the class methods for saving and loading that BaseTuner has since PEFT 0.21."""

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """The tensors of an adapter and the biases that it trains, by their keys in the model."""
        stems = _stems(model, adapter_name)
        tensors = {key: tensor for key, tensor in state_dict.items() if _is_below(key, stems)}
        bias = getattr(config, "bias", "none")
        if bias == "all":
            tensors |= {key: tensor for key, tensor in state_dict.items() if f".{key}".endswith(".bias")}
        elif bias != "none":
            names = (f"{_without_fsdp(name)}.base_layer.bias" for name, _ in _layers(model))
            tensors |= {name: state_dict[name] for name in names if name in state_dict}
        return tensors

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """The key in a file of a key in the model: without the adapter's name, the last part or the last but one."""
        parts = key.split(".")
        for place in (-1, -2):
            if len(parts) > 1 and parts[place] == adapter_name:
                del parts[place]
                break
        return ".".join(parts)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The tensors of a file by their keys in the model; keys that belong to no adapted layer are unchanged."""
        stems = _stems(model, adapter_name)
        keys: dict[str, str] = {}
        for key in model.state_dict():
            if _is_below(key, stems):
                saved = cls._remove_adapter_name_from_key(key, adapter_name)
                keys[saved] = key
                if not key.startswith(_PEFT_PREFIX):
                    keys[_PEFT_PREFIX + saved] = key  # the layers are in the model itself, without a PeftModel
        return {keys.get(key, key): tensor for key, tensor in state_dict.items()}


class FreezingTunerLayer(BaseTunerLayer):
    """A layer some of whose parameters are never trained, as BaseTunerLayer since PEFT 0.20.

    Attributes:
        frozen_peft_weight_names: by adapter, those of `adapter_layer_names` that stay frozen.
    """

    frozen_peft_weight_names: dict[str, tuple[str, ...]]

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters and train their parameters, except for the frozen ones."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self._freeze()

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Train the parameters of adapters or not; the frozen ones are never trained."""
        super().set_requires_grad(adapter_names, requires_grad)
        self._freeze()

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter."""
        self.frozen_peft_weight_names.pop(adapter_name, None)
        super().delete_adapter(adapter_name)

    def _freeze(self) -> None:
        for adapter_name, kinds in self.frozen_peft_weight_names.items():
            for kind in kinds:
                parameters: Any = getattr(self, kind)
                if adapter_name in parameters:
                    parameters[adapter_name].requires_grad_(False)


if TYPE_CHECKING:
    Tuner = BaseTuner
    TunerLayer = BaseTunerLayer
else:
    Tuner = BaseTuner if HAS_STATE_DICT_HOOKS else HookedTuner
    TunerLayer = BaseTunerLayer if HAS_FROZEN_PARAMETERS else FreezingTunerLayer


def _layers(model: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]


def _without_fsdp(name: str) -> str:
    return name.replace(_FSDP_NAME, "")


def _stems(model: nn.Module, adapter_name: str) -> set[str]:
    """The keys of an adapter's parameters, or of the modules that hold them."""
    return {
        f"{_without_fsdp(name)}.{kind}.{adapter_name}".lstrip(".")
        for name, layer in _layers(model)
        for kind in layer.adapter_layer_names
        if adapter_name in getattr(layer, kind)
    }


def _is_below(key: str, stems: set[str]) -> bool:
    while key:
        if key in stems:
            return True
        key = key.rpartition(".")[0]
    return False
