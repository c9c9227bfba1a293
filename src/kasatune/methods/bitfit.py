from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from kasatune.errors import ModelError
from kasatune.methods.shared.checkpoint_folder import CheckpointMethod
from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.table import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BitFit(CheckpointMethod):
    """y = W x + b with only the bias b trained, for every bias of the model, those of LayerNorm included.

    Source: Ben Zaken, Ravfogel, Goldberg, arXiv 2106.10199.
    """

    info = METHODS["bitfit"]

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        new = tuple(f"{name}." for name in new_modules)
        biases = 0
        for name, parameter in model.named_parameters():
            is_bias = name.rsplit(".", 1)[-1] == "bias"
            parameter.requires_grad_(is_bias or name.startswith(new))
            biases += is_bias and not name.startswith(new)
        if biases == 0:
            raise ModelError(
                f"method 'bitfit' trains biases, and {type(model).__name__} has none outside its head; "
                "choose another method, e.g. lora"
            )
        return model


METHOD = BitFit()
