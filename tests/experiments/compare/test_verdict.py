"""Verdicts on differences, margins, the primary endpoint, and what a comparison of simulated methods concludes."""

from __future__ import annotations

import numpy as np
import pytest

from kasatune.errors import InputError
from kasatune.experiments.compare.primary_endpoint import parse_primary
from kasatune.experiments.compare.verdict import as_difference, decide, lower_is_better, parse_margins
from kasatune.metrics.seeds_by_rows import mean_of_seeds, mean_of_table

TASKS = {"sst2": ("glue/sst2", "accuracy", {}), "e2e": ("e2e", "loss", {})}
METHODS = ["kasa", "kasa:convention=authors", "lora", "lora:r=16"]


def verdicts_of(values, metric="accuracy", margin=0.01):
    difference = as_difference(mean_of_seeds(values), metric, margin, len(values))
    decide([(metric, difference)], [])
    return difference["verdicts"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.05, 0.052, 0.048, 0.051], ["better"]),
        ([-0.05, -0.052, -0.048, -0.051], ["worse"]),
        ([0.004, 0.0042, 0.0038, 0.0041], ["better", "equivalent"]),
        ([-0.004, -0.0042, -0.0038, -0.0041], ["worse", "equivalent"]),
        ([0.001, -0.001, 0.0005, -0.0004], ["equivalent"]),
        ([0.03, -0.004, 0.01, 0.012], ["not inferior"]),
        ([0.05, -0.05, 0.02, -0.03], ["undecided"]),
        ([0.0, 0.0, 0.0], ["equivalent"]),
        ([0.1, 0.1, 0.1], ["not tested"]),
    ],
)
def test_verdicts(values, expected):
    assert verdicts_of(values) == expected
    opposite = {"better": "worse", "worse": "better"}
    mirrored = verdicts_of([-value for value in values], "loss")
    assert mirrored == expected, "a loss is better where it is smaller"
    if expected != ["not inferior"]:
        assert verdicts_of(values, "loss") == [opposite.get(word, word) for word in expected]


def test_without_a_margin_only_differences_are_decided():
    assert verdicts_of([0.001, -0.001, 0.0005], margin=None) == ["undecided"]
    assert verdicts_of([0.05, 0.051, 0.049], margin=None) == ["better"]


def test_one_seed_is_not_tested():
    difference = as_difference(None, "accuracy", 0.01, 1)
    decide([], [("accuracy", difference)])
    assert difference["verdicts"] == ["not tested"] and difference["p_holm"] is None


def test_the_primary_difference_is_not_corrected_and_the_others_are():
    values = [0.012, 0.03, 0.018, 0.021, 0.006]
    primary, *others = (as_difference(mean_of_seeds(values), "accuracy", None, 5) for _ in range(11))
    decide([("accuracy", primary)], [("accuracy", other) for other in others])
    assert primary["p_holm"] == primary["p"] < 0.05 and primary["family"] == "primary"
    assert others[0]["p_holm"] == pytest.approx(10 * primary["p"]) and others[0]["family"] == "exploratory"
    assert primary["verdict"] == "better" and others[0]["verdict"] == "undecided"


@pytest.mark.parametrize(
    ("shift", "word"), [(0.0, "better"), (0.0, "worse"), (0.02, "equivalent"), (-0.02, "equivalent")]
)
def test_a_false_verdict_is_rare(shift, word):
    """No difference, or one at the margin: 5 % or fewer wrong claims over simulated seeds and rows."""
    generator, wrong, number = np.random.default_rng(3), 0, 1500
    for _ in range(number):
        table = shift + generator.normal(0, 0.01, (5, 1)) + generator.normal(0, 0.1, (1, 80))
        difference = as_difference(mean_of_table(table + generator.normal(0, 0.2, (5, 80))), "accuracy", 0.02, 5)
        decide([("accuracy", difference)], [])
        wrong += word in difference["verdicts"]
    assert wrong / number < 0.05 + 3 * (0.05 * 0.95 / number) ** 0.5


def test_a_true_difference_and_true_equivalence_are_found():
    generator = np.random.default_rng(4)
    rows = generator.normal(0, 0.05, (1, 400))
    noise = generator.normal(0, 0.1, (10, 400))
    assert verdict_of_table(0.05 + rows + noise) == ["better"]
    assert verdict_of_table(rows - rows.mean() + noise - noise.mean(axis=1, keepdims=True)) == ["equivalent"]


def verdict_of_table(table):
    difference = as_difference(mean_of_table(table), "accuracy", 0.02, len(table))
    decide([("accuracy", difference)], [])
    return difference["verdicts"]


def test_margins_are_parsed():
    assert parse_margins(["accuracy=0.005", "loss=1e-2"]) == {"accuracy": 0.005, "loss": 0.01}
    assert lower_is_better("forgetting") and lower_is_better("loss") and not lower_is_better("rouge_l")


@pytest.mark.parametrize(
    "text", ["accuracy", "accuracy=", "=0.1", "accuracy=0", "accuracy=-1", "accuracy=nan", "accuracy=inf"]
)
def test_invalid_margins_are_refused(text):
    with pytest.raises(InputError, match="--margin"):
        parse_margins([text])


def test_a_margin_is_given_once():
    with pytest.raises(InputError, match="given twice"):
        parse_margins(["loss=1", "loss=2"])


@pytest.mark.parametrize(
    ("text", "method", "reference", "margin"),
    [
        ("sst2:accuracy:kasa:lora", "kasa", "lora", 0.01),
        ("sst2:accuracy:kasa:lora:0.02", "kasa", "lora", 0.02),
        ("sst2:accuracy:kasa:convention=authors:lora:r=16", "kasa:convention=authors", "lora:r=16", 0.01),
        ("sst2:accuracy:kasa:convention=authors:kasa:0.5", "kasa:convention=authors", "kasa", 0.5),
        ("e2e:forgetting:lora:r=16:lora", "lora:r=16", "lora", 0.02),
        ("e2e:forgetting_matched:kasa:lora", "kasa", "lora", 0.02),
    ],
)
def test_the_primary_endpoint_is_parsed(text, method, reference, margin):
    primary = parse_primary(text, TASKS, METHODS, {})
    assert (primary.method, primary.reference, primary.margin) == (method, reference, margin)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the tasks are sst2, e2e"),
        ("cola:accuracy:kasa:lora", "the tasks are"),
        ("sst2:bleu:kasa:lora", "'bleu' is not a score of sst2"),
        ("sst2:accuracy", "two different methods"),
        ("sst2:accuracy:kasa", "two different methods"),
        ("sst2:accuracy:kasa:kasa", "two different methods"),
        ("sst2:accuracy:dora:lora", "two different methods"),
        ("sst2:accuracy:kasa:lora:much", "the margin 'much'"),
        ("sst2:accuracy:kasa:lora:-1", "the margin '-1'"),
    ],
)
def test_an_invalid_primary_endpoint_is_refused(text, words):
    with pytest.raises(InputError, match="--primary") as caught:
        parse_primary(text, TASKS, METHODS, {})
    assert words in str(caught.value)
