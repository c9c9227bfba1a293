"""Tokens and labels of prompts and completions, and their mean loss over labelled tokens."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from kasatune.data.collate import CausalCollator
from kasatune.data.prompt_completion import IGNORED, encode_rows, prompt_tokens
from kasatune.evaluation.causal_loss import learnt_tokens, text_loss, token_losses
from kasatune.training.engines.trainer import mean_loss
from tests.text_toys import save_tokenizer

BEGIN, END = 0, 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), padding=True)


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(word) for word in text.split()]


def test_only_the_completion_and_its_end_have_labels(tokenizer):
    row = encode_rows(tokenizer, ["say red :"], ["red blue"], 20)[0]
    prompt, completion = ids(tokenizer, "say red :"), ids(tokenizer, "red blue")
    assert row["input_ids"] == [BEGIN, *prompt, *completion, END]
    assert row["labels"] == [*[IGNORED] * 4, *completion, END]
    assert row["attention_mask"] == [1] * 7


def test_loss_on_everything_labels_every_token(tokenizer):
    row = encode_rows(tokenizer, ["say red :"], ["red"], 20, "everything")[0]
    assert row["labels"] == row["input_ids"]


def test_prompt_tokens_are_equal_in_training_and_generation(tokenizer):
    row = encode_rows(tokenizer, ["say red :"], ["red"], 20)[0]
    (asked,) = prompt_tokens(tokenizer, ["say red :"])
    assert row["input_ids"][: len(asked)] == asked


def test_end_token_added_by_the_tokenizer_is_removed_from_prompts(tokenizer):
    class Ending:
        eos_token_id, is_fast = END, True

        def __call__(self, texts, **_):
            return {"input_ids": [[BEGIN, 5, END] for _ in texts]}

    assert prompt_tokens(Ending(), ["red"]) == [[BEGIN, 5]]


def test_long_completion_loses_its_end_and_end_token(tokenizer):
    examples = encode_rows(tokenizer, ["say :", "say :"], ["red blue green one two", "red"], 6)
    assert examples.truncated == {0}
    assert examples[0]["input_ids"] == [BEGIN, *ids(tokenizer, "say : red blue green")]
    assert examples[1]["input_ids"][-1] == END


def test_long_prompt_leaves_half_of_the_length_to_the_completion(tokenizer):
    examples = encode_rows(tokenizer, ["say red blue green one two three :"], ["red blue green one"], 6)
    assert examples[0]["input_ids"] == ids(tokenizer, "two three : red blue green")
    assert examples[0]["labels"][:3] == [IGNORED] * 3


def test_batches_are_padded_on_the_right(tokenizer):
    rows = encode_rows(tokenizer, ["say :", "say red blue :"], ["one", "two"], 20)
    batch = CausalCollator(tokenizer)(list(rows.rows))
    assert batch["input_ids"][0].tolist() == [*rows[0]["input_ids"], *[tokenizer.pad_token_id] * 2]
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert batch["labels"][0].tolist()[-2:] == [IGNORED] * 2
    assert batch["labels"].dtype == torch.long


def test_sum_of_token_losses_equals_transformers_loss(tokenizer):
    torch.manual_seed(0)
    rows = encode_rows(tokenizer, ["say :", "say red blue :"], ["one two three", "two"], 20)
    batch = CausalCollator(tokenizer)(list(rows.rows))
    logits = torch.randn(*batch["labels"].shape, len(tokenizer))
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, len(tokenizer)), batch["labels"][:, 1:].reshape(-1), ignore_index=IGNORED
    )
    outputs = SimpleNamespace(logits=logits)
    torch.testing.assert_close(mean_loss(outputs, batch["labels"]), expected)
    count = learnt_tokens(batch["labels"])
    assert count == 4 + 2
    pieces = [mean_loss(SimpleNamespace(logits=logits[i : i + 1]), batch["labels"][i : i + 1], count) for i in range(2)]
    torch.testing.assert_close(sum(pieces), expected)
    torch.testing.assert_close(token_losses(logits, batch["labels"]), expected * count)


def test_split_loss_weights_tokens_equally_for_any_batch_size(llama: Path):
    from transformers import AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    tokenizer.pad_token = tokenizer.eos_token
    rows = encode_rows(tokenizer, ["say red :", "say :", "say one two :"], ["one two three pub", "two", "red cafe"], 30)
    collate = CausalCollator(tokenizer)
    alone = [
        (text_loss(model, type(rows)([row], frozenset()), collate, 1).mean, sum(t != IGNORED for t in row["labels"]))
        for row in rows.rows
    ]
    expected = sum(loss * count for loss, count in alone) / sum(count for _, count in alone)
    for size in (1, 2, 3):
        loss = text_loss(model, rows, collate, size)
        assert loss.mean == pytest.approx(expected, rel=1e-6)
        assert loss.tokens == [count for _, count in alone]
        assert [total / count for total, count in zip(loss.sums, loss.tokens, strict=True)] == pytest.approx(
            [mean for mean, _ in alone], rel=1e-5
        )
    own = model(**{k: torch.tensor([v]) for k, v in rows[0].items()}).loss
    assert alone[0][0] == pytest.approx(float(own), rel=1e-6)
