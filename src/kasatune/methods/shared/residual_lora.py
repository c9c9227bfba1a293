"""LoRA that is initialized with a part of the weight itself, which the frozen weight then lacks (PiSSA, MiLoRA ...)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import save_file
from torch import Tensor, nn

from kasatune.io.run_layout import ADAPTER
from kasatune.methods.lora import ADAPTER_NAME, Lora, lora_layers
from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.shared.peft_adapter import as_peft_model, sort_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INITIAL_FACTORS = "initial_factors"


class ResidualLora(Lora):
    """y = (W - s B0 A0) x + s B A drop(x): A and B start as A0 and B0, which are computed from W.

    Saved as the equivalent LoRA of rank 2r on the untouched base, s [B, -B0] [A; A0]: loading the adapter needs neither
    the decomposition nor the changed base. In 16 bits the residual W - s B0 A0 is rounded at the start of training, and
    the saved adapter differs from the model in memory by that rounding.
    """

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        wrapped = super().attach(model, settings, kind, new_modules)
        if not any(parameter.is_meta for parameter in wrapped.parameters()):
            for _, layer in lora_layers(wrapped):
                self.initialize(layer)
            remember_initial_factors(wrapped)
        return wrapped

    def initialize(self, layer: LoraLinear) -> None:
        """Set A and B of a layer and subtract s B A from its weight, unless PEFT has already done so."""

    def stored_numbers(
        self, trained: int, shapes: Sequence[tuple[int, int]], settings: MethodSettings
    ) -> dict[str, int]:
        """See `Method.stored_numbers`: rank 2r."""
        return {self.folder: 2 * trained}

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        """See `Method.disabled`; only a loaded adapter can be switched off."""
        if hasattr(model, _INITIAL_FACTORS):
            return super().disabled(model)
        return as_peft_model(model).disable_adapter()

    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        """Save the LoRA of rank 2r, see the class."""
        folder = run_dir / ADAPTER
        folder.mkdir(parents=True, exist_ok=True)
        initial = initial_factors(model)
        tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
        for name, (A0, B0) in initial.items():
            A, B = (tensors[f"{name}.lora_{factor}.weight"].detach().cpu() for factor in "AB")
            tensors[f"{name}.lora_A.weight"] = torch.cat([A, A0.to(A.dtype)])
            tensors[f"{name}.lora_B.weight"] = torch.cat([B, -B0.to(B.dtype)], dim=1)
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        self._save_config(model, folder, base_name)

    def _save_config(self, model: nn.Module, folder: Path, base_name: str) -> None:
        """Write the configuration of a plain LoRA of rank 2r with the same scaling."""
        config: Any = copy.copy(as_peft_model(model).peft_config[ADAPTER_NAME])
        config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2
        config.r *= 2
        config.init_lora_weights = True
        config.base_model_name_or_path = base_name
        config.inference_mode = True
        config.save_pretrained(str(folder), auto_mapping_dict=None)
        sort_config(folder)


def remember_initial_factors(model: nn.Module) -> None:
    """Copy the current A and B of every layer to the CPU as A0 and B0, for `ResidualLora.save`."""
    factors = {
        name: tuple(f[ADAPTER_NAME].weight.detach().cpu().clone() for f in (layer.lora_A, layer.lora_B))
        for name, layer in lora_layers(model)
    }
    setattr(model, _INITIAL_FACTORS, factors)


def initial_factors(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A0 and B0 of every layer by name, on the CPU; of a model in training."""
    return getattr(model, _INITIAL_FACTORS)
