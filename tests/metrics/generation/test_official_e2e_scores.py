"""Scores of three systems of the E2E challenge on its 630 test inputs, against the official ones."""

import csv

import numpy as np
import pytest

from kasatune.metrics.generation import (
    bleu_signature,
    cider_segments,
    generation_scores,
    meteor_exact_stem_segments,
    rouge_l_segments,
    signatures,
)
from tests.shared_data import shared


@pytest.fixture(scope="module")
def references():
    groups = {}
    with shared("e2e/testset_w_refs.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            groups.setdefault(row["mr"], []).append(row["ref"])
    assert len(groups) == 630
    return groups


def outputs(system, references):
    quote = "'" if system == "tnt1" else '"'
    with shared(f"e2e_systems/{system}.tsv").open(encoding="utf-8", newline="") as file:
        rows = dict(list(csv.reader(file, delimiter="\t", quotechar=quote))[1:])
    return [rows[source] for source in references]


@pytest.mark.parametrize(
    ("system", "official"),
    [("tgen", {"bleu": 0.6593, "nist": 8.5923}), ("chen", {"bleu": 0.5859, "nist": 5.1265})],
)
def test_bleu_and_nist_of_the_corpus(system, official, references):
    scores = generation_scores(["bleu", "nist"], outputs(system, references), list(references.values()))
    assert scores == pytest.approx(official, abs=1e-4)


def test_the_signature_of_bleu_names_its_settings(references):
    groups = list(references.values())
    assert signatures(["bleu", "nist"], groups)["bleu"].startswith("nrefs:var|case:lc|eff:no|tok:13a|smooth:none|")
    assert bleu_signature([group[:1] for group in groups]).startswith("nrefs:1|case:lc|")
    assert signatures(["nist"], groups) == {}


@pytest.fixture(scope="module")
def official(references):
    with shared("e2e_systems/tnt1.segment_scores.tsv").open(encoding="utf-8") as file:
        rows = {row["src"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    return [rows[source] for source in references]


@pytest.mark.parametrize(
    ("name", "score", "least"), [("ROUGE_L", rouge_l_segments, 1.0), ("CIDEr", cider_segments, 0.99)]
)
def test_scores_of_segments_and_their_mean(name, score, least, official, references):
    ours = np.array(score([row["sys_out"] for row in official], list(references.values())))
    theirs = np.array([float(row[name]) for row in official])
    assert (abs(ours - theirs) < 1e-3).mean() >= least
    assert ours.mean() == pytest.approx(theirs.mean(), abs=1e-3)


def test_meteor_exact_stem_differs_from_meteor_by_what_its_docstring_states(official, references):
    pytest.importorskip("nltk")
    some = slice(0, 630, 5)
    texts = [row["sys_out"] for row in official][some]
    ours = meteor_exact_stem_segments(texts, list(references.values())[some])
    theirs = [float(row["METEOR"]) for row in official][some]
    assert np.corrcoef(ours, theirs)[0, 1] > 0.85
    assert np.mean(theirs) - np.mean(ours) == pytest.approx(0.039, abs=0.01)
