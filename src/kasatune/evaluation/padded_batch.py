"""Compare the outputs of rows in one padded batch with those of the same rows alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kasatune.adapters.parity import Outputs, output_dtype
from kasatune.evaluation.batches import evaluation_mode
from kasatune.models.padding import choose_padding_token
from kasatune.weights.usable_positions import usable_positions

_LENGTHS = (5, 16, 2, 9)


class PaddedBatch(NamedTuple):
    """Outputs of a few rows of different lengths: of every row alone, and of all in one batch."""

    alone: Outputs
    batch: Outputs


def padded_batch(model: Any, tokenizer: PreTrainedTokenizerBase) -> PaddedBatch | None:
    """The outputs of fixed rows of token ids, alone and in a batch that the tokenizer pads.

    A classifier gives one row of logits for each row; of other models the outputs at the tokens of each row are
    compared, and their rows are padded on the right.

    Args:
        model: a model of transformers, or a PEFT model around one.
        tokenizer: its tokenizer, whose padding token and side are used.

    Returns:
        None where there is nothing to compare: without a padding token that the model has an embedding for, or for an
        encoder-decoder.
    """
    embeddings: Any = model.get_input_embeddings()
    size, pad = embeddings.weight.shape[0], choose_padding_token(tokenizer)
    if pad is None or pad >= size or model.config.is_encoder_decoder:
        return None
    special = {pad, *tokenizer.all_special_ids}
    ordinary = torch.tensor([number for number in range(size) if number not in special])
    if not len(ordinary):
        return None
    longest = usable_positions(model) or max(_LENGTHS)
    generator = torch.Generator().manual_seed(0)
    rows = [
        ordinary[torch.randint(0, len(ordinary), (min(length, longest),), generator=generator)] for length in _LENGTHS
    ]
    with evaluation_mode(model, "float32") as device:
        alone = [_outputs(model, row[None].to(device), torch.ones_like(row[None]).to(device))[0] for row in rows]
        per_token = alone[0].ndim > 1
        side = "right" if per_token else tokenizer.padding_side
        ids = torch.full((len(rows), max(map(len, rows))), pad)
        mask = torch.zeros_like(ids)
        for target, hidden, row in zip(ids, mask, rows, strict=True):
            place = slice(0, len(row)) if side == "right" else slice(len(target) - len(row), None)
            target[place], hidden[place] = row, 1
        together = _outputs(model, ids.to(device), mask.to(device))
    batch = [output[: len(row)] if per_token else output for output, row in zip(together, rows, strict=True)]
    dtype = output_dtype(model, device)
    return PaddedBatch(*(Outputs(torch.cat([part.flatten() for part in parts]), dtype) for parts in (alone, batch)))


def _outputs(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    output: Any = model(input_ids=ids, attention_mask=mask)
    values = getattr(output, "logits", None)
    return (output.last_hidden_state if values is None else values).float().cpu()
