"""Find the transformer blocks and the head of a model, whatever its architecture calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from kasatune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def transformer_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The name and the list of the transformer blocks, lowest first.

    It is the outermost `nn.ModuleList` with as many entries as the configuration has hidden layers.

    Raises:
        ModelError: the model has no such list.
    """
    config: Any = model.config
    depth = getattr(config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise ModelError(f"{type(model).__name__} has no list of transformer blocks; choose a method that needs none")


def head_name(model: PreTrainedModel) -> str:
    """The name of the module that turns features into logits: the last child with parameters other than the body.

    Raises:
        ModelError: the model has no head.
    """
    children = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
    heads = [name for name in children if name != model.base_model_prefix]
    if not heads:
        raise ModelError(
            f"{type(model).__name__} has no head outside its body; use a model for sequence classification"
        )
    return heads[-1]
