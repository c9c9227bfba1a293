"""Forgetting is measured by the base model's pretraining loss, or by the drift of its features."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from kasatune.data.tasks import load_task
from kasatune.errors import InputError
from kasatune.evaluation.task_model import TaskModel
from kasatune.evaluation.unrelated_text import UnrelatedText, windows
from kasatune.experiments.compare import process_cache
from kasatune.experiments.compare.forgetting import (
    Measured,
    measure_trained,
    measure_untrained,
    read_retention,
    write_retention,
)
from kasatune.experiments.compare.matched_forgetting import forgetting_at
from kasatune.methods.shared.trained_parameters import TrainedState, trainable
from kasatune.models.load import load_base
from kasatune.training.train import train
from tests.toys import BAD, GOOD, make_bert, make_recipe


@pytest.fixture
def text(tmp_path):
    """The unrelated text in the words that the toy models know."""
    words = random.Random(0).choices(GOOD + BAD, k=600)
    (tmp_path / "text.txt").write_text(" ".join(words) + "\n", encoding="utf-8")
    return UnrelatedText(str(tmp_path / "text.txt"), tokens=320)


def base_of(section):
    return load_base(section, kind="regression", label_names=None, seed=0, max_length=32)


def prepared(folder, data, text, method="lora", move=0.0):
    recipe = make_recipe(folder, data, method={"name": method})
    task_model = TaskModel.for_training(recipe, load_task(recipe.task))
    with torch.no_grad():
        for name, parameter in trainable(task_model.model).items():
            if "classifier" not in name and "score" not in name:
                parameter.add_(move)
    return task_model, measure_untrained(recipe.model, base_of(recipe.model), text)


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


def test_an_encoder_without_a_head_is_measured_by_feature_drift(bert, tmp_path, text):
    task_model, before = prepared(bert, tmp_path, text)
    assert before.kind == "feature_drift" and before.losses is None
    assert measure_trained(task_model.model, before) == pytest.approx(0, abs=1e-6)
    moved, before = prepared(bert, tmp_path, text, move=0.1)
    assert measure_trained(moved.model, before).mean() > 0.01
    assert before.features.shape == (len(measure_trained(moved.model, before)), 32)


def test_the_default_text_is_long_enough_prose_of_the_standard_library():
    texts = UnrelatedText(tokens=2000).documents()
    assert len(texts) == len(set(texts)) and all(len(text.split()) >= 60 for text in texts)
    assert texts == UnrelatedText(tokens=2000).documents()
    assert "standard library of Python 3" in UnrelatedText().source


def test_pieces_have_equal_length_and_hold_the_tokens_asked_for(bert, tmp_path, text):
    tokenizer = base_of(make_recipe(bert, tmp_path).model).tokenizer
    pieces = windows(tokenizer, text.documents(), 100, 16)
    assert len(pieces) == 7 and {len(piece) for piece in pieces} == {16}
    assert pieces[0][0] == tokenizer.cls_token_id and pieces[0][1:-1] != pieces[1][1:-1]


def test_a_text_that_is_too_short_is_refused(bert, tmp_path, text, monkeypatch):
    with pytest.raises(InputError, match="too few for 100,000 tokens"):
        UnrelatedText(text.file, 100_000).documents()
    tokenizer = base_of(make_recipe(bert, tmp_path).model).tokenizer
    monkeypatch.setattr("kasatune.evaluation.unrelated_text.standard_library_docstrings", lambda *a, **k: ["short"])
    with pytest.raises(InputError, match="the standard library has 5 characters, too few for 12,345 tokens"):
        UnrelatedText(tokens=12_345).documents()
    with pytest.raises(InputError, match="2,000 are needed"):
        windows(tokenizer, text.documents(), 2000)
    with pytest.raises(InputError, match=r"no such file|not found|does not exist"):
        UnrelatedText(str(tmp_path / "missing.txt"), 100).documents()


def test_the_loss_of_a_masked_model_changes_only_with_its_weights(masked, tmp_path, text):
    task_model, before = prepared(masked, tmp_path, text)
    assert before.kind == "masked_lm_loss"
    assert measure_trained(task_model.model, before) == pytest.approx(before.losses, rel=1e-5)
    moved, _ = prepared(masked, tmp_path, text, move=0.1)
    assert abs(measure_trained(moved.model, before).mean() - before.losses.mean()) > 1e-3


def test_the_masked_loss_equals_that_of_the_complete_model(masked, tmp_path, text):
    _, before = prepared(masked, tmp_path, text)
    model = AutoModelForMaskedLM.from_pretrained(masked).eval()
    total = tokens = 0
    for batch in before.batches:
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        total += float(functional.cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="sum"))
        tokens += int((batch["labels"] != -100).sum())
        assert len(set((batch["labels"] != -100).sum(1).tolist())) == 1, "as many masked tokens in each piece"
    assert tokens > 15 and before.losses.mean() == pytest.approx(total / tokens, rel=1e-5)


def causal_loss(folder, batches):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    total = tokens = 0
    for batch in batches:
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        labels = batch["labels"][:, 1:]
        total += float(functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="sum"))
        tokens += labels.numel()
    return total / tokens


def test_the_causal_loss_is_that_of_the_next_token(causal, tmp_path, text):
    recipe = make_recipe(causal, tmp_path, method={"name": "lora"})
    before = measure_untrained(recipe.model, base_of(recipe.model), text)
    assert before.kind == "causal_lm_loss" and before.head is not None
    assert before.losses.mean() == pytest.approx(causal_loss(causal, before.batches), rel=1e-5)


def test_the_loss_of_a_language_model_is_its_own(llama, tmp_path, text):
    section = make_recipe(llama, tmp_path).model
    base = load_base(section, kind="generation", label_names=None, seed=0, max_length=32)
    before = measure_untrained(section, base, text, generates=True)
    assert before.kind == "causal_lm_loss" and before.head is None
    assert before.losses.mean() == pytest.approx(causal_loss(llama, before.batches), rel=1e-5)
    assert measure_trained(base.model, before) == pytest.approx(before.losses, rel=1e-6)


def test_virtual_tokens_are_left_out_of_the_features(bert, tmp_path, text):
    task_model, before = prepared(bert, tmp_path, text, method="prefix-tuning")
    assert 0 < measure_trained(task_model.model, before).mean() < 2


def test_retention_is_read_as_it_was_written(bert, tmp_path, text):
    _, before = prepared(bert, tmp_path, text)
    after = np.linspace(0, 1, len(before.features))
    summary = write_retention(tmp_path, before, after, [(1.0, 0.5)])
    assert summary["after"] == 0.5 and summary["before"] == 0 and summary["tokens"] == before.tokens >= 320
    assert summary["text"] == "the file text.txt"
    read = read_retention(tmp_path)
    assert read.rise == pytest.approx(after) and read.epochs == [(1.0, 0.5)]
    (tmp_path / "retention.json").write_text("{", encoding="utf-8")
    assert read_retention(tmp_path) is None


@pytest.mark.parametrize("changed", [None, "lora_A", "LayerNorm"])
def test_a_measurement_holds_for_the_same_model_alone(bert, tmp_path, text, changed):
    task_model, before = prepared(bert, tmp_path, text, move=0.1)
    model = task_model.model
    measured = Measured(1.0, measure_trained(model, before), TrainedState.of(model))
    if changed:
        with torch.no_grad():
            next(weight for name, weight in model.named_parameters() if changed in name).add_(0.1)
    assert measured.valid_for(model, before, "float32") == (changed is None)


def test_the_best_state_is_not_measured_again_at_the_end_of_a_run(bert, tmp_path, text, monkeypatch):
    calls = []
    monkeypatch.setattr(process_cache, "measure_trained", lambda *args: calls.append(args) or measure_trained(*args))
    recipe = make_recipe(bert, tmp_path, train=24, validation=17, epochs=3, method={"name": "kasa"})
    assert recipe.training.select == "best"
    cache = process_cache.ProcessCache()
    train(recipe, tmp_path / "run", data_provider=cache.data_provider(search=False, unrelated=text, writes_text=False))
    assert len(calls) == 3, "once for each epoch"
    saved = TaskModel.for_saved_run(recipe, ("bad", "good"), tmp_path / "run")
    stored = read_retention(tmp_path / "run")
    assert np.array_equal(stored.after, measure_trained(saved.model, cache.untrained(recipe, text)))
    assert len(stored.epochs) == 3


CURVE = [(1.0, 0.6, 0.1), (2.0, 0.8, 0.3)]


@pytest.mark.parametrize(
    ("curve", "level", "lower", "expected"),
    [
        (CURVE, 0.8, False, 0.3),
        (CURVE, 0.7, False, 0.2),
        (CURVE, 0.5, False, 0.1),
        ([(1.0, 2.0, 0.1), (2.0, 1.0, 0.5), (3.0, 1.5, 0.7)], 1.5, True, 0.3),
        ([(1.0, 0.5, 0.1), (2.0, 0.5, 0.2)], 0.5, False, 0.1),
    ],
)
def test_forgetting_at_a_score_is_interpolated_between_evaluations(curve, level, lower, expected):
    assert forgetting_at(curve, level, lower=lower) == pytest.approx(expected)
