"""Packed sequences and batches of rows of similar length: which rows go where, and what a model computes of them."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
)

from kasatune.data.length_groups import POOL, LengthGroupSampler, order_by_length_groups
from kasatune.data.packing import PackedCollator, assign_to_sequences, pack
from kasatune.data.prompt_completion import IGNORED
from kasatune.data.tokenize import Examples
from kasatune.errors import RecipeError
from kasatune.evaluation.causal_loss import learnt_tokens, predicting, token_losses
from kasatune.evaluation.logits_to_keep import kept_logits
from kasatune.evaluation.packed_rows import require_packable


@pytest.fixture
def tokenizer(tmp_path):
    from tests.text_toys import save_tokenizer

    return save_tokenizer(tmp_path, padding=True)


def test_every_row_is_packed_once_and_nothing_is_too_long():
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 65, (500,), generator=draw).tolist()
    sequences = assign_to_sequences(lengths, 64)
    assert sorted(row for members in sequences for row in members) == list(range(500))
    used = [sum(lengths[row] for row in members) for members in sequences]
    assert max(used) <= 64
    assert len(sequences) <= 1.02 * sum(lengths) / 64 + 1
    assert assign_to_sequences([3, 5, 2, 5], 5) == [[1], [3], [0, 2]]
    assert assign_to_sequences([], 5) == []


def test_packed_rows_have_their_own_positions_and_no_label_at_their_start(tokenizer):
    rows = [
        {"input_ids": [5, 6, 7], "attention_mask": [1] * 3, "labels": [5, 6, 7]},
        {"input_ids": [8, 9], "attention_mask": [1] * 2, "labels": [IGNORED, 9]},
        {"input_ids": [4], "attention_mask": [1], "labels": [4]},
    ]
    packed = pack(Examples(rows, frozenset({1})), 5)
    assert packed.rows == [
        {"input_ids": [5, 6, 7, 8, 9], "position_ids": [0, 1, 2, 0, 1], "labels": [IGNORED, 6, 7, IGNORED, 9]},
        {"input_ids": [4], "position_ids": [0], "labels": [IGNORED]},
    ]
    batch = PackedCollator(tokenizer)(packed.rows)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert batch["labels"][1].tolist() == [IGNORED] * 5
    assert set(batch) == {"input_ids", "position_ids", "labels"}


SHAPE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE, intermediate_size=24, num_attention_heads=2, initializer_range=0.5),
        GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.5),
    ],
)
def test_losses_and_gradients_of_packed_rows_are_those_of_the_rows_alone(config, tokenizer):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    require_packable(model)
    draw = torch.Generator().manual_seed(1)
    rows = []
    for length in (7, 3, 9, 2, 5, 1):
        ids = torch.randint(0, 40, (length,), generator=draw).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": [IGNORED, *ids[1:]]})

    def loss(batch):
        labels = batch.pop("labels")
        logits = kept_logits(model, {**batch, "use_cache": False}, predicting(labels))
        return token_losses(logits[None], labels), learnt_tokens(labels)

    packed, count = loss(PackedCollator(tokenizer)(pack(Examples(rows, frozenset()), 12).rows))
    packed.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    parts = [loss({key: torch.tensor([row[key]]) for key in row}) for row in rows]
    alone = sum(part for part, _ in parts)
    alone.backward()
    assert count == sum(number for _, number in parts)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.5),
        MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4, initializer_range=0.5),
    ],
)
def test_models_in_which_packed_rows_would_mix_are_refused(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(RecipeError, match=rf"training.packing: true received; {type(model).__name__} .*; leave it out"):
        require_packable(model)


def order(lengths, size, seed=0):
    return order_by_length_groups(lengths, size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "size"), [(1000, 8), (1003, 8), (5, 8), (8, 8), (1, 1), (0, 4), (7 * POOL, 7)])
def test_an_order_holds_every_row_once(rows, size):
    lengths = torch.randint(1, 100, (rows,), generator=torch.Generator().manual_seed(rows)).tolist()
    assert sorted(order(lengths, size)) == list(range(rows))


def test_batches_have_little_padding_and_are_not_sorted():
    lengths = torch.randint(10, 100, (1003,), generator=torch.Generator().manual_seed(5)).tolist()
    drawn = order(lengths, 8)
    batches = [[lengths[row] for row in drawn[start : start + 8]] for start in range(0, len(drawn), 8)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert padded < 1.05 * sum(lengths)
    longest = [max(batch) for batch in batches]
    assert abs(torch.corrcoef(torch.tensor([longest, list(range(len(longest)))]).float())[0, 1]) < 0.3
    assert [len(batch) for batch in batches[:-1]] == [8] * 125 and len(batches[-1]) == 3


def test_the_order_follows_from_seed_and_epoch():
    lengths = list(range(1, 200))
    epoch = 0
    sampler = LengthGroupSampler(lengths, 4, 7, lambda: epoch)
    first = list(sampler)
    assert first == list(sampler) and len(sampler) == len(first) == 199
    epoch = 1
    assert list(sampler) != first
    assert list(LengthGroupSampler(lengths, 4, 8, lambda: 0)) != first
