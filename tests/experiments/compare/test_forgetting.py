"""Forgetting is measured by the base model's pretraining loss, or by the drift of its features."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from kasatune.data.tasks import load_task
from kasatune.evaluation.task_model import TaskModel
from kasatune.experiments.compare.forgetting import measure_untrained, retention, sentences
from kasatune.methods.shared.trained_parameters import trainable
from kasatune.models.load import load_base
from tests.toys import BAD, GOOD, make_bert, make_recipe


@pytest.fixture(autouse=True)
def words_of_the_toy(tmp_path, monkeypatch):
    """The unrelated text in the words that the toy models know."""
    lines = [" ".join(draw.choices(GOOD + BAD, k=9)) for draw in [random.Random(0)] for _ in range(20)]
    (tmp_path / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr("kasatune.experiments.compare.forgetting._TEXT", tmp_path / "text.txt")


def base_of(section):
    return load_base(section, kind="regression", label_names=None, seed=0, max_length=32)


def prepared(folder, data, method="lora", move=0.0):
    recipe = make_recipe(folder, data, method={"name": method})
    task_model = TaskModel.for_training(recipe, load_task(recipe.task))
    with torch.no_grad():
        for name, parameter in trainable(task_model.model).items():
            if "classifier" not in name and "score" not in name:
                parameter.add_(move)
    return task_model, measure_untrained(recipe.model, base_of(recipe.model))


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A BERT with the head of its pretraining."""
    folder = make_bert(tmp_path_factory.mktemp("models") / "masked")
    torch.manual_seed(3)
    config = BertConfig.from_pretrained(folder)
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def causal(tmp_path_factory, masked):
    """A GPT-2 with its language-model head and the words of the toy BERT."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "causal"
    tokenizer = AutoTokenizer.from_pretrained(masked)
    torch.manual_seed(4)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, pad_token_id=tokenizer.pad_token_id
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_encoder_without_a_head_is_measured_by_feature_drift(bert, tmp_path):
    task_model, before = prepared(bert, tmp_path)
    assert retention(task_model.model, before) == {
        "kind": "feature_drift",
        "before": 0.0,
        "after": pytest.approx(0, abs=1e-6),
    }
    moved, before = prepared(bert, tmp_path, move=0.1)
    assert retention(moved.model, before)["after"] > 0.01
    assert before.features.shape == (20, 32)


def test_the_packaged_text_is_complete_sentences(monkeypatch):
    monkeypatch.undo()
    assert len(sentences()) == 48 and all(line.endswith(".") and len(line) > 30 for line in sentences())


def test_the_loss_of_a_masked_model_changes_only_with_its_weights(masked, tmp_path):
    task_model, before = prepared(masked, tmp_path)
    assert before.kind == "masked_lm_loss"
    found = retention(task_model.model, before)
    assert found["after"] == pytest.approx(found["before"], rel=1e-6)
    moved, _ = prepared(masked, tmp_path, move=0.1)
    assert abs(retention(moved.model, before)["after"] - found["before"]) > 1e-3


def test_the_masked_loss_equals_that_of_the_complete_model(masked, tmp_path):
    _, before = prepared(masked, tmp_path)
    model = AutoModelForMaskedLM.from_pretrained(masked).eval()
    total = tokens = 0
    for batch in before.batches:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        with torch.no_grad():
            logits = model(**inputs).logits
        total += float(functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="sum"))
        tokens += int((batch["labels"] != -100).sum())
    assert tokens > 15 and before.loss == pytest.approx(total / tokens, rel=1e-5)


def test_the_causal_loss_is_that_of_the_next_token(causal, tmp_path):
    recipe = make_recipe(causal, tmp_path, method={"name": "lora"})
    base = base_of(recipe.model)
    before = measure_untrained(recipe.model, base)
    assert before.kind == "causal_lm_loss"
    model = GPT2LMHeadModel.from_pretrained(causal).eval()
    total = tokens = 0
    for batch in before.batches:
        with torch.no_grad():
            logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        labels = batch["labels"][:, 1:]
        total += float(functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="sum"))
        tokens += int((labels != -100).sum())
    assert before.loss == pytest.approx(total / tokens, rel=1e-5)


def test_virtual_tokens_are_left_out_of_the_features(bert, tmp_path):
    task_model, before = prepared(bert, tmp_path, method="prefix-tuning")
    assert 0 < retention(task_model.model, before)["after"] < 2
