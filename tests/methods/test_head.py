from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from kasatune import methods
from kasatune.errors import AdapterError, WorkError
from tests.methods.toys import classifier, settings

HEAD = methods.load("head")
INPUTS = {"input_ids": torch.tensor([[2, 5, 6, 9, 3], [2, 7, 8, 11, 3], [2, 12, 5, 5, 3]])}


def attached(folder, labels=2, **options):
    return HEAD.attach(classifier(folder, labels, **options), settings("head"), "classification", ["classifier"])


def data(number=200, features=32, classes=3, seed=0):
    """Features of different scales; the first few determine the class."""
    draw = np.random.default_rng(seed)
    z = draw.normal(size=(number, features))
    y = (z[:, :classes] + 0.5 * draw.normal(size=(number, classes))).argmax(1)
    return (z * np.linspace(0.1, 5, features) + 2).astype(np.float32), y


def logits_of(model, x):
    head = model.classifier
    return head(torch.from_numpy(x)).numpy()


def test_before_fitting_the_logits_are_the_features(bert):
    plain, model = classifier(bert), attached(bert)
    with torch.no_grad():
        pooled = plain.bert(**INPUTS).pooler_output
        assert torch.equal(model(**INPUTS).logits, pooled)


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_scikit_learns_optimum_at_the_chosen_strength(bert, classes):
    x, y = data(classes=classes)
    model = attached(bert, classes)
    chosen = HEAD.fit(model, x, y.tolist(), seed=0)
    scaler = StandardScaler().fit(x)
    reference = LogisticRegression(C=chosen["C"], tol=1e-8, max_iter=10_000).fit(scaler.transform(x), y)
    found = torch.from_numpy(logits_of(model, x)).double().softmax(-1).numpy()
    np.testing.assert_allclose(found, reference.predict_proba(scaler.transform(x)), atol=1e-3)
    assert chosen["folds"] == 5


def test_the_strength_depends_on_the_noise(bert):
    x, y = data(number=60)
    chaos = np.random.default_rng(1).integers(0, 3, size=60)
    clear, noisy = (HEAD.fit(attached(bert, 3), x, labels.tolist(), seed=0)["C"] for labels in (y, chaos))
    assert noisy < clear


def test_a_class_without_examples_is_never_predicted(bert):
    x, y = data(classes=2)
    model = attached(bert, 4)
    HEAD.fit(model, x, (2 * y + 1).tolist(), seed=0)
    probabilities = torch.from_numpy(logits_of(model, x)).softmax(-1)
    assert (probabilities[:, [0, 2]] == 0).all()
    assert float((probabilities.argmax(-1) == torch.from_numpy(2 * y + 1)).float().mean()) > 0.7


def test_a_single_class_cannot_be_fitted(bert):
    x, _ = data(number=10)
    with pytest.raises(WorkError, match="one class only"):
        HEAD.fit(attached(bert), x, [1] * 10, seed=0)


def test_a_class_with_one_example_is_fitted_without_cross_validation(bert):
    x, _ = data(number=10)
    chosen = HEAD.fit(attached(bert), x, [1] + [0] * 9, seed=0)
    assert (chosen["C"], chosen["folds"]) == (1.0, 1)


def test_a_regression_is_ridge_at_the_chosen_strength(bert):
    x, _ = data()
    y = x @ np.linspace(-1, 1, 32) + np.random.default_rng(2).normal(size=len(x))
    model = attached(bert, 1, problem_type="regression")
    alpha = HEAD.fit(model, x, y.tolist(), seed=0)["alpha"]
    scaler = StandardScaler().fit(x)
    reference = Ridge(alpha=alpha).fit(scaler.transform(x), y).predict(scaler.transform(x))
    np.testing.assert_allclose(logits_of(model, x)[:, 0], reference, atol=1e-3)


def test_loading_restores_the_logits(bert, tmp_path):
    x, y = data()
    model = attached(bert, 3)
    HEAD.fit(model, x, y.tolist(), seed=0)
    HEAD.save(model, tmp_path, "some/base")
    again = HEAD.load(classifier(bert, 3), tmp_path, settings("head"))
    with torch.no_grad():
        assert torch.equal(again(**INPUTS).logits, model(**INPUTS).logits)
        assert model(**INPUTS).logits.shape == (3, 3)


def test_new_modules_before_the_head_are_saved_with_it(bert, tmp_path):
    x, y = data()
    first = HEAD.attach(classifier(bert), settings("head"), "classification", ["bert.pooler", "classifier"])
    HEAD.fit(first, x, (y % 2).tolist(), seed=0)
    HEAD.save(first, tmp_path, "some/base")
    other = classifier(bert)
    torch.nn.init.normal_(other.bert.pooler.dense.weight)
    again = HEAD.load(other, tmp_path, settings("head"))
    with torch.no_grad():
        assert torch.equal(again(**INPUTS).logits, first(**INPUTS).logits)


def test_a_head_of_another_width_is_refused(bert, tmp_path):
    x, y = data(features=16)
    model = attached(bert, 3)
    HEAD.fit(model, x, y.tolist(), seed=0)
    HEAD.save(model, tmp_path, "some/base")
    with pytest.raises(AdapterError, match="features"):
        HEAD.load(classifier(bert, 3), tmp_path, settings("head"))


def test_a_head_that_reads_the_first_token_is_given_its_features(bert):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=13,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
        pad_token_id=1,
    )
    plain = RobertaForSequenceClassification(config).eval()
    with torch.no_grad():
        expected = plain.roberta(**INPUTS).last_hidden_state[:, 0]
        model = HEAD.attach(plain, settings("head"), "classification", ["classifier"])
        assert torch.equal(model(**INPUTS).logits, expected)


def test_a_decoder_pools_its_last_token(bert):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(vocab_size=13, n_positions=32, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)
    plain = GPT2ForSequenceClassification(config).eval()
    tokens = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]])
    with torch.no_grad():
        hidden = plain.transformer(tokens, attention_mask=(tokens != 0).long()).last_hidden_state
        model = HEAD.attach(plain, settings("head"), "classification", ["score"])
        found = model(input_ids=tokens, attention_mask=(tokens != 0).long()).logits
    torch.testing.assert_close(found, torch.stack([hidden[0, 2], hidden[1, 4]]))
