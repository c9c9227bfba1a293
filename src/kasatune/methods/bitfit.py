from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from kasatune.errors import ModelError
from kasatune.methods.base import Method, MethodSettings, TaskKind, trainable
from kasatune.methods.checkpoint import load_tensors, put_tensors, save_tensors
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BitFit(Method):
    """Every bias b of the model is trained (those of LayerNorm too), no weight matrix.

    Source: Ben Zaken, Ravfogel, Goldberg, arXiv 2106.10199.
    """

    info = METHODS["bitfit"]

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        whole = tuple(f"{name}." for name in new_modules)
        biases = 0
        for name, parameter in model.named_parameters():
            is_bias = name.rsplit(".", 1)[-1] == "bias"
            parameter.requires_grad_(is_bias or name.startswith(whole))
            biases += is_bias and not name.startswith(whole)
        if biases == 0:
            raise ModelError(
                f"method 'bitfit' trains biases, and {type(model).__name__} has none outside its head; "
                "choose another method, e.g. lora"
            )
        return model

    def save(self, model: nn.Module, run_dir: Path, base_name: str) -> None:
        """See `Method.save`."""
        save_tensors(run_dir, self.info.name, base_name, trainable(model))

    def load(self, base: PreTrainedModel, run_dir: Path, settings: MethodSettings) -> nn.Module:
        """See `Method.load`."""
        put_tensors(base, load_tensors(run_dir), run_dir)
        return base


METHOD = BitFit()
