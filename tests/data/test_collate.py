"""Padded batches equal those of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, DataCollatorWithPadding

from kasatune.data.collate import LabelledCollator
from kasatune.data.tokenize import encode

TEXTS = ["good fine bad", "bad", "good " * 9]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("second", [None, ["sad", "nice " * 5, ""]])
@pytest.mark.parametrize("labels", [None, [2, 0, 1], [0.5, -100.0, 3.0]])
def test_batch_equals_transformers(bert, side, second, labels):
    tokenizer = AutoTokenizer.from_pretrained(bert, padding_side=side)
    rows = encode(tokenizer, TEXTS, second, labels, 8).rows
    expected = DataCollatorWithPadding(tokenizer, padding="longest")([dict(row) for row in rows])
    found = LabelledCollator(tokenizer)(rows)
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor)


def test_other_keys_are_padded_by_transformers(bert):
    tokenizer = AutoTokenizer.from_pretrained(bert)
    rows = [dict(tokenizer(text, return_special_tokens_mask=True)) for text in TEXTS]
    batch = LabelledCollator(tokenizer)(rows)
    assert batch["special_tokens_mask"].shape == batch["input_ids"].shape
    assert batch["special_tokens_mask"][1].tolist()[-1] == 1
