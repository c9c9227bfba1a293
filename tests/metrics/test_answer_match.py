"""Exact match and F1 of short answers."""

from __future__ import annotations

import pytest

from kasatune.metrics.answer_match import contains_answer, exact_match, normalize_answer, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower.", "eiffel tower"),
        ("a cat, an owl", "cat owl"),
        ("theory of the-ory", "theory of theory"),
        ("0.75", "075"),
        ("the", ""),
        ("naïve “quoted”", "naïve “quoted”"),
    ],
)
def test_normalization_is_that_of_squad(text, expected):
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "match", "f1"),
    [
        ("The Danube", ["danube"], 1, 1),
        ("the river Danube", ["Danube"], 0, 2 / 3),
        ("red red blue", ["red blue blue"], 0, 2 / 3),
        ("iron", ["steel", "iron and steel"], 0, 0.5),
        ("", ["x"], 0, 0),
        ("a", ["the"], 1, 0),
        ("x", [], 0, 0),
    ],
)
def test_scores_are_the_best_over_the_answers(prediction, answers, match, f1):
    assert exact_match(prediction, answers) == match
    assert token_f1(prediction, answers) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("It was the year 1889.", "1889", True),
        ("It was the year 18890.", "1889", False),
        ("in the Black\nSea", "black sea", True),
        ("in the Black Forest by the Sea", "black sea", False),
        ("anything", "the", False),
    ],
)
def test_an_answer_is_found_as_complete_words(text, answer, expected):
    assert contains_answer(text, answer) is expected
