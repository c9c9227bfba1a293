"""The longest input that a model has positions for: max_position_embeddings less what RoBERTa's padding takes."""

from __future__ import annotations

from typing import Any

from torch import nn

_LIMITS = ("max_position_embeddings", "max_encoder_position_embeddings")
_TABLES = ("position_embeddings", "embed_positions")


def usable_positions(model: nn.Module) -> int | None:
    """The number of tokens of the longest input, or None where the model states no limit.

    RoBERTa and its descendants (XLM-R, CamemBERT, Longformer, MPNet and others) number the positions of an input from
    `padding_idx + 1`. Of a table with n rows they can therefore use n - padding_idx - 1.

    Args:
        model: a model of transformers, or a PEFT model around one; its weights may be on the meta device.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        return None
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limits = [getattr(config, name, None) for name in _LIMITS]
    limits += [_rows(table) for name, table in model.named_modules() if name.endswith(_TABLES)]
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def _rows(table: nn.Module) -> int | None:
    """The usable rows of a table whose first rows belong to the padding; None for any other module."""
    padding, rows = getattr(table, "padding_idx", None), getattr(table, "num_embeddings", None)
    if rows is None and isinstance(weight := getattr(table, "weight", None), nn.Parameter):
        rows = weight.shape[0]
    return None if padding is None or rows is None else int(rows) - int(padding) - 1
