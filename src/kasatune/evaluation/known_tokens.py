"""Reject token ids that the model has no embedding for, such as those of tokens added to a tokenizer alone."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from kasatune.errors import ModelError
from kasatune.wording import counted


def require_known_tokens(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Iterable[Sequence[int]], name: str | None = None
) -> None:
    """Check that every token of `rows` has a row in the model's input embeddings.

    Args:
        model: the model that will read the rows.
        tokenizer: the tokenizer that made them.
        rows: token ids of each text.
        name: name of the model for the message; None for the one in its configuration.

    Raises:
        ModelError: a token id is beyond the embeddings.
    """
    largest = max((max(row, default=0) for row in rows), default=0)
    embeddings = _embedding_rows(model)
    if embeddings is None or largest < embeddings:
        return
    config: Any = model.config
    token = str(tokenizer.decode([largest])).strip()
    raise ModelError(
        f"model.name: {name or config.name_or_path}: its tokenizer gives {token!r} the id {largest}, but the model has"
        f" only {counted(embeddings, 'embedding')}; give the tokenizer that belongs to the model, or"
        " leave the token out of the text"
    )


@contextmanager
def only_known_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Generator[None]:
    """Check every batch that reaches the input embeddings, for code that tokenizes and runs the model by itself.

    Raises:
        ModelError: as `require_known_tokens`, from the forward of the model.
    """

    def check(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        require_known_tokens(model, tokenizer, [inputs[0].flatten().tolist()])

    handle = _input_embeddings(model).register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _embedding_rows(model: nn.Module) -> int | None:
    """The number of embeddings; None where the module does not state it."""
    module = _input_embeddings(model)
    while (inner := getattr(module, "base_layer", None)) is not None:
        module = inner
    return getattr(module, "num_embeddings", None)


def _input_embeddings(model: Any) -> Any:
    return model.get_input_embeddings()
