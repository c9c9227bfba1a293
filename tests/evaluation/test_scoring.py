from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kasatune.data.collate import LabelledCollator
from kasatune.data.tokenize import encode
from kasatune.errors import DivergedError
from kasatune.evaluation.scoring import answers, logits, score
from kasatune.models.load import load_base
from kasatune.recipes.schema import ModelSection
from kasatune.training.better_score import is_better
from tests.toys import rows


@pytest.fixture(scope="module")
def base(bert):
    section = ModelSection(name=str(bert))
    return load_base(section, kind="classification", label_names=("a", "b", "c"), seed=0, max_length=32)


def test_logits_are_in_row_order_for_any_batch_size(base):
    texts = [text for text, _ in rows(11, 2, seed=5)]
    examples = encode(base.tokenizer, texts, None, None, 32)
    one_by_one = []
    with torch.no_grad():
        for text in texts:
            one_by_one.append(base.model(**base.tokenizer(text, return_tensors="pt")).logits[0].numpy())
    for size in (1, 4, 64):
        found = logits(base.model, examples, LabelledCollator(base.tokenizer), size)
        np.testing.assert_allclose(found, np.stack(one_by_one), atol=1e-5)


def test_evaluation_restores_training_mode_and_random_state(base):
    base.model.train()
    before = torch.get_rng_state()
    logits(base.model, encode(base.tokenizer, ["good"], None, None, 8), LabelledCollator(base.tokenizer), 1)
    assert base.model.training
    assert torch.equal(torch.get_rng_state(), before)
    base.model.eval()


def test_pairs_are_truncated_and_truncated_rows_reported(base):
    first, second = ["good " * 3, "bad " * 20], ["nice", "sad " * 20]
    examples = encode(base.tokenizer, first, second, [1, 0], 10)
    assert [len(row["input_ids"]) for row in examples] == [7, 10]
    assert examples.truncated == {1}
    assert examples.labels == [1, 0]
    assert set(examples[0]["token_type_ids"]) == {0, 1}
    tail = base.tokenizer.convert_ids_to_tokens(examples[1]["input_ids"])
    assert {"bad", "sad"} < set(tail), "the longer text is cut first, not the second one away"


def test_scores_follow_from_the_logits():
    values = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]], dtype=np.float32)
    found = score(values, [0, 1, 1], "classification", ["accuracy"])
    assert found.metrics["accuracy"] == pytest.approx(2 / 3)
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))) / 3
    assert found.metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert found.predictions == [0, 1, 0]
    assert [sum(row) for row in found.scores] == pytest.approx([1, 1, 1])


def test_regression_scores_are_its_numbers():
    found = score(np.array([[1.0], [2.0], [4.0]], dtype=np.float32), [1.0, 2.0, 3.0], "regression", ["pearson"])
    assert found.metrics["loss"] == pytest.approx(1 / 3)
    assert found.metrics["pearson"] == pytest.approx(float(np.corrcoef([1, 2, 4], [1, 2, 3])[0, 1]))
    assert found.predictions == found.scores == [1.0, 2.0, 4.0]
    assert answers(np.array([[7.0]]), "regression") == ([7.0], [7.0])


def test_non_finite_logits_raise():
    with pytest.raises(DivergedError):
        score(np.array([[float("nan"), 0.0]], dtype=np.float32), [0], "classification", ["accuracy"])


@pytest.mark.parametrize(
    ("value", "best", "primary", "better"),
    [
        (0.6, 0.5, "accuracy", True),
        (0.5, 0.5, "accuracy", False),
        (0.4, 0.5, "accuracy", False),
        (0.4, 0.5, "mse", True),
        (0.6, 0.5, "loss", False),
        (math.nan, 0.5, "accuracy", False),
        (-0.5, math.nan, "pearson", True),
        (math.nan, math.nan, "pearson", False),
    ],
)
def test_best_epoch_has_the_best_primary_score(value, best, primary, better):
    assert is_better({primary: value}, {primary: best}, primary) is better
    assert is_better({primary: value}, None, primary)


@pytest.mark.parametrize(
    ("loss", "best_loss", "better"),
    [(0.01, 0.82, True), (0.82, 0.01, False), (0.5, 0.5, False), (0.5, math.nan, True), (math.nan, 0.5, False)],
)
@pytest.mark.parametrize(("value", "primary"), [(1.0, "accuracy"), (math.nan, "pearson"), (0.3, "mse")])
def test_equal_scores_are_ordered_by_their_loss(loss, best_loss, better, value, primary):
    assert is_better({primary: value, "loss": loss}, {primary: value, "loss": best_loss}, primary) is better


def test_a_better_score_counts_more_than_a_lower_loss():
    assert is_better({"accuracy": 0.9, "loss": 2.0}, {"accuracy": 0.8, "loss": 0.1}, "accuracy")
    assert not is_better({"accuracy": 0.8, "loss": 0.1}, {"accuracy": 0.9, "loss": 2.0}, "accuracy")
