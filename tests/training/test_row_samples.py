"""What a run records to be read: tokens, gradient norm and time of each step, worst rows, and the base's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from kasatune.training.train import train
from tests.text_toys import make_text_recipe
from tests.toys import make_recipe, rows


def steps(run: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event for event in events if event["event"] == "train"]


def test_steps_record_tokens_gradient_and_time(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, train=24, batch_size=8, gradient_accumulation=2, epochs=2, max_grad_norm=1e-3)
    events = steps(train(recipe, tmp_path / "run"))
    tokenizer = AutoTokenizer.from_pretrained(bert)
    tokens = sum(len(tokenizer(text)["input_ids"]) for text, _ in rows(24, 2, seed=1))
    assert [sum(event["tokens"] for event in epoch) for epoch in (events[:3], events[3:])] == [tokens, tokens]
    assert [event["total_steps"] for event in events] == [6] * 6
    seconds = [event["seconds"] for event in events]
    assert seconds == sorted(seconds)
    assert all(event["grad_norm"] > 1e-3 for event in events)  # before clipping


def test_the_worst_rows_of_a_classifier_are_those_it_is_most_wrong_about(bert, tmp_path):
    run = train(make_recipe(bert, tmp_path, labels=3, validation=40, epochs=1), tmp_path / "run")
    content = json.loads((run / "predictions.json").read_text())
    texts = [text for text, _ in rows(40, 3, seed=2)]
    wrong = [i for i, label in enumerate(content["labels"]) if content["predictions"][i] != label]
    wrong.sort(key=lambda i: content["scores"][i][content["labels"][i]])
    assert wrong
    assert [entry["row"] for entry in content["worst"]] == wrong[:20]
    assert [entry["texts"] for entry in content["worst"]] == [[texts[i]] for i in wrong[:20]]


def test_the_worst_rows_of_a_regression_have_the_largest_errors(bert, tmp_path):
    run = train(make_recipe(bert, tmp_path, labels=0, epochs=1), tmp_path / "run")
    content = json.loads((run / "predictions.json").read_text())
    errors = [abs(guess - label) for guess, label in zip(content["predictions"], content["labels"], strict=True)]
    worst = [errors[entry["row"]] for entry in content["worst"]]
    assert worst == sorted(errors, reverse=True)[: len(worst)]


@pytest.mark.parametrize("method", ["kasa", "full"])
def test_the_base_answers_the_first_prompts_too(method, llama, tmp_path):
    from kasatune.adapter_tools.chat import Conversation, open_chat
    from kasatune.evaluation.stream import Sampling

    recipe = make_text_recipe(llama, tmp_path, method={"name": method})
    run = train(recipe, tmp_path / "run")
    content = json.loads((run / "predictions.json").read_text())
    if method == "full":
        assert "base_predictions" not in content  # it would have to be loaded for that
        return
    base = open_chat(str(llama))
    asked = Conversation(base, Sampling(recipe.generation.max_new_tokens))
    assert content["base_predictions"] == [asked.ask(prompt, str) for prompt in content["inputs"][:5]]
    assert content["base_predictions"] != content["predictions"][:5]
