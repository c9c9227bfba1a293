"""The transformer blocks of a model, whatever its architecture calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from kasatune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the list of the transformer blocks, lowest first.

    They are the outermost `nn.ModuleList` with as many entries as the configuration has hidden layers.

    Raises:
        ModelError: the model has no such list.
    """
    config: Any = model.config
    depth = getattr(config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise ModelError(f"{type(model).__name__} has no list of transformer blocks; choose a method that needs none")
