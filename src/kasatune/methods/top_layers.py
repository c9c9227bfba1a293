from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from kasatune.errors import ModelError
from kasatune.methods.shared.checkpoint_folder import CheckpointMethod
from kasatune.methods.shared.method import MethodSettings, TaskKind
from kasatune.methods.shared.model_parts import transformer_blocks
from kasatune.methods.table import METHODS
from kasatune.wording import counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TopLayers(CheckpointMethod):
    """All parameters of the last n transformer blocks are trained; embeddings, lower blocks and final norm are frozen.

    Source: Li, Liang, arXiv 2101.00190, "FT-Top2" (n = 2).
    """

    info = METHODS["top-layers"]

    def attach(
        self, model: PreTrainedModel, settings: MethodSettings, kind: TaskKind, new_modules: Sequence[str]
    ) -> nn.Module:
        """See `Method.attach`."""
        _, blocks = transformer_blocks(model)
        number = settings.options["layers"]
        if number > len(blocks):
            raise ModelError(
                f"method.options.layers: {number} received; {type(model).__name__} has "
                f"{counted(len(blocks), 'block')}; lower it"
            )
        model.requires_grad_(False)
        for block in blocks[-number:]:
            block.requires_grad_(True)
        for name in new_modules:
            model.get_submodule(name).requires_grad_(True)
        return model


METHOD = TopLayers()
