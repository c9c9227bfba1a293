"""The padding token of a model: the tokenizer's, also in the model's configuration, so that batches change no score."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kasatune.errors import ModelError


def choose_padding_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the tokenizer's padding token; of its EOS token, which becomes the padding token, if it has none.

    Returns None, and changes nothing, if it has neither.
    """
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    pad: Any = tokenizer.pad_token_id
    return pad


def set_padding(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, classifier: bool) -> None:
    """Set the model's padding token to the tokenizer's.

    A classifier on a decoder reads the last token that is not `config.pad_token_id`: with another id than that of the
    batches, the score of a text would depend on the texts beside it. Labelled rows are padded on the right, because a
    model without position ids counts positions from the left; only a model that reads the last position of a batch
    keeps the side of its tokenizer.

    Args:
        name: the model's name, for messages.
        model: the model; its configuration is changed.
        tokenizer: its tokenizer; gets a padding token if it has none.
        classifier: whether the model scores labelled rows, instead of generating text.

    Raises:
        ModelError: the tokenizer has neither a padding nor an EOS token, or the model has no embedding of its padding
            token.
    """
    pad = choose_padding_token(tokenizer)
    if pad is None:
        raise ModelError(
            f"model.name: the tokenizer of {name} has neither a padding nor an EOS token; "
            "add one to its tokenizer_config.json"
        )
    embeddings: Any = model.get_input_embeddings()
    size = getattr(embeddings, "num_embeddings", None)
    if size is not None and pad >= size:
        raise ModelError(
            f"model.name: {name}: its tokenizer pads with {tokenizer.pad_token!r}, number {pad}, but the model has "
            f"only {size} embeddings; set pad_token in its tokenizer_config.json to one that the model has, such as "
            f"{tokenizer.eos_token or tokenizer.unk_token!r}"
        )
    if not counts_positions_by_padding(model):
        for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
            config.pad_token_id = pad
    if getattr(embeddings, "padding_idx", None) not in (None, pad):
        embeddings.padding_idx = None  # an ordinary token, whose embedding would get no gradient
    if classifier:
        tokenizer.padding_side = padding_side(model, tokenizer)


def padding_side(classifier: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """The side on which the rows of a classifier are padded: the right one, unless it reads the last position."""
    reads_last = getattr(classifier.config, "summary_type", None) == "last"
    return tokenizer.padding_side if reads_last else "right"


def drop_unusable_padding(config: PreTrainedConfig) -> None:
    """Remove a padding id that is outside the vocabulary, for which transformers builds no model."""
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        pad, size = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if isinstance(pad, int) and isinstance(size, int) and not -size <= pad < size:
            part.pad_token_id = None


def counts_positions_by_padding(model: nn.Module) -> bool:
    """Whether a model numbers positions from its padding id on, as RoBERTa does.

    Its configuration must keep that id, whatever the tokenizer pads with: another one would shift every position.
    """
    tables = (module for name, module in model.named_modules() if name.rpartition(".")[2] == "position_embeddings")
    return any(isinstance(table, nn.Embedding) and table.padding_idx is not None for table in tables)
