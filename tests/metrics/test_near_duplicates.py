"""ROUGE-L F1 of words against the rouge-score package, and the search for near-duplicates."""

import random

import pytest

from kasatune.metrics.near_duplicates import NearDuplicates, rouge_l_f1, words

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")


def test_rouge_l_f1_equals_that_of_rouge_score():
    draw, scorer = random.Random(0), rouge_scorer.RougeScorer(["rougeL"])
    for _ in range(300):
        a, b = (" ".join(draw.choices("abcdefg", k=draw.randrange(1, 90))) for _ in range(2))
        assert rouge_l_f1(words(a), words(b)) == pytest.approx(scorer.score(a, b)["rougeL"].fmeasure, abs=1e-12)


def test_empty_texts_have_similarity_zero():
    assert rouge_l_f1([], []) == rouge_l_f1(["a"], []) == rouge_l_f1([], ["a"]) == 0.0


def test_the_first_near_duplicate_is_found():
    known = NearDuplicates(0.7)
    for text in ("Name three rivers of Asia", "Add two numbers, then print them"):
        known.add(text)
    assert known.find("name three LAKES of asia!") == 0  # four of five words
    assert known.find("Name three lakes in Asia") is None  # three of five
    assert known.find("then print them, add two numbers") is None
    assert known.find("") is None and known.find("?!") is None
    assert len(known) == 2


def test_similarity_equal_to_the_threshold_is_a_near_duplicate():
    known = NearDuplicates(0.8)
    known.add("a b c d e")
    assert known.find("a b c d f") == 0
