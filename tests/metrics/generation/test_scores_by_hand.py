"""Scores of generated text on examples small enough to compute by hand."""

import math
import sys

import pytest

from kasatune.errors import MissingExtraError
from kasatune.metrics.generation import (
    bleu,
    cider,
    cider_segments,
    generation_scores,
    meteor_exact_stem,
    meteor_exact_stem_segments,
    nist,
    require_scores,
    rouge_l,
)
from kasatune.metrics.generation.tokenization import mteval_tokens, treebank_tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It's £20, near X.", ["it's", "£20", ",", "near", "x", "."]),
        ("1,000.5 and 20-25", ["1,000.5", "and", "20", "-", "25"]),
        ("kid-friendly (yes)", ["kid-friendly", "(", "yes", ")"]),
        ("over 30.", ["over", "30", "."]),
        ("A &amp; B", ["a", "&", "b"]),
    ],
)
def test_mteval_tokens(text, tokens):
    assert mteval_tokens(text) == tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It isn't Bob's, it's 'good'.", ["it", "is", "n't", "bob", "'s", "it", "'s", "good"]),
        ("£20-25, £20 - £25; 5%.", ["£", "20-25", "£", "20", "£", "25", "5", "%"]),
        ("a kid-friendly, non- smoking (new) pub", ["a", "kid-friendly", "non", "smoking", "new", "pub"]),
        (
            "yes, .Blue no. Mr. X at 3.50 the U.K. etc.",
            ["yes", "blue", "no", "mr.", "x", "at", "3.50", "the", "u.k.", "etc."],
        ),
        ("you\u2019re \u201chere\u201d", ["you", "'re", "here"]),
    ],
)
def test_treebank_tokens(text, tokens):
    assert treebank_tokens(text) == tokens


def test_bleu_by_hand():
    predicted, reference = "the cat sat on the mat today", "the cat sat on a mat"
    precisions = [5 / 7, 3 / 6, 2 / 5, 1 / 4]
    assert bleu([predicted], [[reference]]) == pytest.approx(math.prod(precisions) ** 0.25)
    short = "the cat sat on"
    assert bleu([short], [[reference]]) == pytest.approx(math.exp(1 - 6 / 4))
    assert bleu([short], [[reference, "the cat sat in"]]) == pytest.approx(1)
    assert bleu(["no match here at all"], [[reference]]) == 0
    assert bleu(["", ""], [["a"], ["b"]]) == 0


def test_bleu_counts_an_ngram_as_often_as_one_reference_has_it():
    predicted = "the the the the the"
    both = bleu([predicted], [["the the a b c", "d the e the f"]])
    assert both == 0
    more = [["the the the the a", "b the c d e"]]
    assert bleu([predicted], more) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_nist_by_hand():
    """7 reference tokens: a 3 times, b 2, c and d once; "a b" twice, "b a" once, "a b a" once."""
    unigrams = 2 * math.log2(7 / 3) + math.log2(7 / 2) + math.log2(7 / 2) + math.log2(7 / 3)
    bigrams = math.log2(3 / 2) + math.log2(2 / 1)
    trigrams = math.log2(2 / 1)
    beta = math.log(0.5) / math.log(1.5) ** 2
    penalty = math.exp(beta * math.log(5 / 7) ** 2)
    references = [["a b a c"], ["a b d"]]
    expected = penalty * (unigrams / 5 + bigrams / 3 + trigrams / 1)
    assert nist(["a b a", "b a"], references) == pytest.approx(expected)
    assert math.exp(beta * math.log(2 / 3) ** 2) == pytest.approx(0.5)
    assert nist([""], [["a b"]]) == 0


def test_nist_does_not_reward_length():
    """log2(2/1) for each of the two matched among four tokens; "a b" tells nothing after "a"."""
    assert nist(["a b x x"], [["a b"]]) == pytest.approx(2 / 4)


def test_rouge_by_hand():
    precision, recall = 3 / 4, 3 / 5
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(["a x b c"], [["a b y z c"]]) == pytest.approx(expected)
    split = (1 + 1.44) * (3 / 4) * 1 / (1 + 1.44 * 3 / 4)
    assert rouge_l(["a x b c"], [["a b y z c", "x b"]]) == pytest.approx(split)
    assert rouge_l(["q", "."], [["a"], ["a"]]) == 0


def test_cider_by_hand():
    """Two rows: an n-gram that both rows' references have weighs nothing, one of a single row log 2 each time."""
    references = [["red fish"], ["blue fish"]]
    assert cider_segments(["red fish", "blue bird"], references) == pytest.approx(
        [10 * (1 + 1) / 4, 10 * (math.log(2) / math.hypot(math.log(2), math.log(2))) / 4]
    )
    two = math.log(2)
    bigrams = two / math.hypot(two, two)  # "red fish" of "red fish", "fish bird"
    unigrams = two / math.hypot(two, two)  # "red" of "red", "bird"
    longer = cider_segments(["red fish bird", "blue fish"], references)[0]
    assert longer == pytest.approx(10 * (unigrams + bigrams) / 4 * math.exp(-1 / 72))
    assert cider(["red fish"], [["red fish"]]) == 0


def test_meteor_by_hand():
    pytest.importorskip("nltk")

    def expected(weight, matches, chunks, predicted, total):
        precision, recall = weight / predicted, weight / total
        mean = precision * recall / (0.85 * precision + 0.15 * recall)
        return mean * (1 - 0.6 * (chunks / matches) ** 0.2)

    assert meteor_exact_stem(["the cat sat"], [["the cat sat"]]) == pytest.approx(expected(3, 3, 1, 3, 3))
    assert meteor_exact_stem(["cats sat the"], [["the cat sat"]]) == pytest.approx(expected(2.6, 3, 2, 3, 3))
    assert meteor_exact_stem(["a b a"], [["b a x"]]) == pytest.approx(expected(2, 2, 1, 3, 3))
    assert meteor_exact_stem(["a x b"], [["a b"]]) == pytest.approx(expected(2, 2, 2, 3, 2))
    assert meteor_exact_stem(["q"], [["a"]]) == 0
    segments = meteor_exact_stem_segments(["the cat", "q"], [["a dog", "the cat"], ["b"]])
    assert segments == pytest.approx([expected(2, 2, 1, 2, 2), 0])
    both = meteor_exact_stem(["the cat", "q"], [["a dog", "the cat"], ["b"]])
    assert both == pytest.approx(expected(2, 2, 1, 3, 3))


def test_scores_by_name_and_invalid_input():
    scores = generation_scores(["rouge_l", "bleu"], ["a b c d"], [["a b c d"]])
    assert scores == pytest.approx({"rouge_l": 1, "bleu": 1})
    assert list(scores) == ["rouge_l", "bleu"]
    for wrong, message in (
        ((["meteor"], ["a"], [["a"]]), "unknown score: meteor; choose from bleu"),
        ((["bleu"], ["a"], []), "1 text and 0 groups"),
        ((["bleu"], [], []), "0 texts and 0 groups"),
        ((["bleu"], ["a", "b"], [["a"], []]), "text 1 has no list of references"),
        ((["bleu"], ["a"], ["a"]), "text 0 has no list of references"),
    ):
        with pytest.raises(ValueError, match=message):
            generation_scores(*wrong)


def test_a_missing_stemmer_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.stem.snowball", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kasatune\[meteor\]'"):
        require_scores(["bleu", "meteor_exact_stem"])
    require_scores(["bleu"])
