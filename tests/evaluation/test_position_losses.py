from __future__ import annotations

import pytest
import torch

from kasatune.data.collate import CausalCollator
from kasatune.data.prompt_completion import IGNORED
from kasatune.data.tokenize import Examples
from kasatune.evaluation.causal_loss import text_loss
from kasatune.evaluation.position_losses import PositionLosses


def test_each_token_counts_in_the_range_of_its_place_in_the_answer():
    torch.manual_seed(0)
    answers = [[1, 2, 3, 4, 0], [2], [3, 1, 1], []]  # as many tokens as each row has
    targets = torch.full((4, 7), IGNORED)
    for row, answer in enumerate(answers):
        targets[row, row : row + len(answer)] = torch.tensor(answer, dtype=torch.long)  # prompts of several lengths
    logits = torch.randn(9, 5)
    each = -logits.log_softmax(-1)[torch.arange(9), torch.tensor([1, 2, 3, 4, 0, 2, 3, 1, 1])]
    positions = PositionLosses()
    positions.add(logits[:6], targets[:2])  # two batches
    positions.add(logits[6:], targets[2:])
    means = positions.means()
    assert [(m["first"], m["last"], m["tokens"]) for m in means] == [(1, 1, 3), (2, 2, 2), (3, 4, 3), (5, 5, 1)]
    expected = [each[[0, 5, 6]].mean(), each[[1, 7]].mean(), each[[2, 3, 8]].mean(), each[4]]
    assert [m["loss"] for m in means] == pytest.approx([float(value) for value in expected], rel=1e-6)


def test_no_token_has_no_range():
    positions = PositionLosses()
    assert positions.means() == []
    positions.add(torch.zeros(0, 5), torch.full((2, 3), IGNORED))
    assert positions.means() == []


def test_they_add_up_to_the_loss_and_do_not_change_it(llama):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    tokenizer.pad_token = tokenizer.eos_token
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in ([0, 3, 4], [0, 5, 6, 7, 1])]
    examples, positions = Examples(rows, frozenset()), PositionLosses()
    measured = text_loss(model, examples, CausalCollator(tokenizer), 2, positions=positions)
    assert measured == text_loss(model, examples, CausalCollator(tokenizer), 2)
    means = positions.means()
    assert [m["tokens"] for m in means] == [2, 2, 2]
    assert sum(m["tokens"] * m["loss"] for m in means) == pytest.approx(sum(measured.sums), rel=1e-6)
