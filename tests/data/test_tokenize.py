"""The token cache: equal texts are tokenized once per process, different ones are never confused."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from kasatune.data import tokenize
from kasatune.data.collate import LabelledCollator
from kasatune.data.tokenize import encode

TEXTS = ["good fine", "bad", "good " * 9]


@pytest.fixture
def calls(monkeypatch):
    """The texts of every tokenization."""
    tokenize._cache.clear()
    counted = []
    original = tokenize._tokenize

    def counting(*arguments):
        counted.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(tokenize, "_tokenize", counting)
    return counted


@pytest.fixture
def tokenizer(bert):
    return AutoTokenizer.from_pretrained(bert)


def test_equal_texts_are_tokenized_once(bert, tokenizer, calls):
    one = encode(tokenizer, TEXTS, None, [0, 1, 0], 8)
    LabelledCollator(tokenizer)([one[index] for index in range(3)])
    other = encode(AutoTokenizer.from_pretrained(bert), list(TEXTS), None, [1, 1, 1], 8)
    assert len(calls) == 1
    assert one.labels == [0, 1, 0] and other.labels == [1, 1, 1]
    assert one.truncated == other.truncated == {2}
    assert [row["input_ids"] for row in one.rows] == [row["input_ids"] for row in other.rows]
    assert "labels" not in encode(tokenizer, TEXTS, None, None, 8)[0]


@pytest.mark.parametrize(
    ("texts", "pairs", "length"),
    [
        (["good fine", "bad", "good"], None, 8),
        (["good", "fine bad", "good " * 9], None, 8),
        (TEXTS, TEXTS, 8),
        (TEXTS, None, 7),
    ],
)
def test_other_texts_are_tokenized_again(tokenizer, calls, texts, pairs, length):
    encode(tokenizer, TEXTS, None, None, 8)
    found = encode(tokenizer, texts, pairs, None, length)
    assert len(calls) == 2
    tokenize._cache.clear()
    assert found == encode(tokenizer, texts, pairs, None, length)


def test_changed_tokenizer_tokenizes_again(tokenizer, calls):
    encode(tokenizer, TEXTS, None, None, 8)
    tokenizer.add_tokens(["finer"])
    encode(tokenizer, TEXTS, None, None, 8)
    assert len(calls) == 2


def test_cache_holds_only_the_last_data_sets(tokenizer, calls):
    for number in range(6):
        encode(tokenizer, [f"good {number}"], None, None, 8)
    assert len(tokenize._cache) == 4
    encode(tokenizer, ["good 5"], None, None, 8)
    encode(tokenizer, ["good 0"], None, None, 8)
    assert len(calls) == 7
