"""Batched generation equals single prompts and depends on the recipe alone."""

import warnings
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from kasatune.data.tasks.data_to_text import read_pairs
from kasatune.data.tasks.table import TASKS
from kasatune.errors import InputError, ModelError
from kasatune.evaluation.generate import generate, unused_settings
from tests.shared_data import shared
from tests.text_toys import lines


@dataclass(frozen=True)
class Settings:
    max_new_tokens: int = 6
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0


PROMPTS = [line["question"] for line in lines(9, seed=4)]


def load(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer


@pytest.fixture(params=["llama", "gpt2"])
def loaded(request: pytest.FixtureRequest):
    return load(request.getfixturevalue(request.param))


@pytest.mark.parametrize(
    "settings", [Settings(), Settings(num_beams=4, length_penalty=0.8), Settings(num_beams=3, no_repeat_ngram_size=2)]
)
def test_any_batch_size_generates_the_same_texts_in_order(loaded, settings):
    model, tokenizer = loaded
    alone = [generate(model, tokenizer, [prompt], settings, 1, max_length=40)[0] for prompt in PROMPTS]
    assert len(set(alone)) > 3
    for size in (2, 5, 9):
        assert generate(model, tokenizer, PROMPTS, settings, size, max_length=40) == alone


def test_trained_model_generates_the_same_texts_in_batches():
    model, tokenizer = load(shared("models/stories260K-hf"))
    prompts = list(dict.fromkeys(read_pairs(TASKS["e2e"], shared("e2e/valid.txt")).first))[:5]
    settings = Settings(max_new_tokens=12, num_beams=10, length_penalty=0.8)
    alone = [generate(model, tokenizer, [prompt], settings, 1, max_length=400)[0] for prompt in prompts]
    assert generate(model, tokenizer, prompts, settings, 5, max_length=400) == alone
    assert all(alone)


def test_greedy_search_is_the_most_likely_token_each_time(loaded):
    model, tokenizer = loaded
    tokens = tokenizer(PROMPTS[0])["input_ids"]
    start = len(tokens)
    with torch.no_grad():
        for _ in range(6):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == tokenizer.eos_token_id:
                break
    expected = tokenizer.decode(tokens[start:], skip_special_tokens=True)
    assert generate(model, tokenizer, PROMPTS[:1], Settings(), 1, max_length=40) == [expected]


def test_a_text_ends_at_the_end_of_turn(loaded):
    model, tokenizer = loaded
    text = generate(model, tokenizer, PROMPTS[:1], Settings(), 1, max_length=40)[0]
    third = tokenizer.convert_tokens_to_ids(text.split()[2])
    ended = generate(model, tokenizer, PROMPTS[:1], Settings(), 1, max_length=40, end_of_turn=third)[0]
    assert ended.split() == list(takewhile(lambda word: word != text.split()[2], text.split()))


def test_generation_config_of_the_model_is_ignored_and_restored(loaded):
    model, tokenizer = loaded
    plain = generate(model, tokenizer, PROMPTS, Settings(), 4, max_length=40)
    assert unused_settings(model) == {}
    own = GenerationConfig(
        do_sample=True, temperature=9.0, top_k=3, repetition_penalty=5.0, max_length=3, eos_token_id=1, min_new_tokens=4
    )
    model.generation_config = own
    assert generate(model, tokenizer, PROMPTS, Settings(), 4, max_length=40) == plain
    assert model.generation_config is own
    assert set(unused_settings(model)) >= {"do_sample", "temperature", "top_k", "repetition_penalty", "max_length"}


def test_ngram_limit_applies_to_generated_text_only(loaded):
    model, tokenizer = loaded
    long = Settings(max_new_tokens=20)
    free = generate(model, tokenizer, PROMPTS, long, 4, max_length=40)
    bound = generate(model, tokenizer, PROMPTS, Settings(max_new_tokens=20, no_repeat_ngram_size=1), 4, max_length=40)
    assert any(len(set(text.split())) < len(text.split()) for text in free)
    assert all(len(set(text.split())) == len(text.split()) for text in bound)
    words = [set(prompt.split()) & set(text.split()) for prompt, text in zip(PROMPTS, bound, strict=True)]
    assert any(words), "words of the prompt may be written"


def test_higher_length_penalty_generates_longer_text(loaded):
    model, tokenizer = loaded
    short, long = (
        generate(model, tokenizer, PROMPTS, Settings(12, num_beams=4, length_penalty=penalty), 9, max_length=40)
        for penalty in (-5.0, 5.0)
    )
    assert sum(len(text.split()) for text in short) < sum(len(text.split()) for text in long)


def test_a_long_prompt_loses_its_beginning(loaded):
    model, tokenizer = loaded
    whole = "say red blue green one two three :"
    kept = generate(model, tokenizer, [whole], Settings(), 1, max_length=3)
    tokens = tokenizer(whole)["input_ids"][-3:]
    with torch.no_grad():
        out = model.generate(torch.tensor([tokens]), max_new_tokens=6, do_sample=False, pad_token_id=1)
    assert kept == [tokenizer.decode(out[0, 3:], skip_special_tokens=True)]


def test_more_new_tokens_than_the_model_has_positions_are_refused(loaded):
    model, tokenizer = loaded
    with pytest.raises(ModelError, match=r"generation\.max_new_tokens: 64 .* 64 positions"):
        generate(model, tokenizer, PROMPTS, Settings(max_new_tokens=64), 4, max_length=40)


def test_empty_prompt_is_refused_if_the_tokenizer_adds_no_token(loaded):
    class Bare:
        is_fast = True
        eos_token_id = 1

        def __call__(self, texts, **_):
            return {"input_ids": [[] for _ in texts]}

    with pytest.raises(InputError, match="prompt 1 is empty"):
        generate(loaded[0], Bare(), [""], Settings(), 1, max_length=4)


def test_warning_counts_texts_cut_at_max_new_tokens(loaded):
    model, tokenizer = loaded
    with pytest.warns(UserWarning, match=r"of 9 texts were cut at generation\.max_new_tokens \(1\)") as told:
        generate(model, tokenizer, PROMPTS, Settings(max_new_tokens=1), 4, max_length=40)
    assert len(told) == 1
    model.generation_config = GenerationConfig(eos_token_id=list(range(len(tokenizer))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # whatever is written ends the text now
        generate(model, tokenizer, PROMPTS, Settings(), 4, max_length=40)


def test_training_mode_is_restored(loaded):
    model, tokenizer = loaded
    model.train()
    generate(model, tokenizer, PROMPTS[:1], Settings(), 1, max_length=40)
    assert model.training
