from __future__ import annotations

from kasatune.reports import markdown
from kasatune.reports.formatting import metric_title
from kasatune.reports.score_tables import as_markdown, comparison, gather, scores, spread
from tests.reports import sample_runs


def test_scores_are_shown_next_to_those_of_the_last_epoch():
    assert as_markdown(scores(sample_runs.metrics())).splitlines() == [
        "| demo, validation | selected | last epoch |",
        "| --- | ---: | ---: |",
        "| accuracy | 0.8725 | 0.8675 |",
        "| macro F1 | 0.8712 | 0.8660 |",
        "| loss | 0.4120 | 0.4300 |",
    ]


def test_scores_without_a_last_epoch_have_one_column():
    assert scores(sample_runs.metrics(last=None)).head == ["demo, validation", "selected"]


def test_a_comparison_gives_mean_and_sample_deviation_over_the_runs_of_a_method():
    runs = [
        ("KaSA", sample_runs.metrics(metrics={"accuracy": 0.8})),
        ("LoRA", sample_runs.metrics(metrics={"accuracy": 0.7, "f1": 0.6})),
        ("KaSA", sample_runs.metrics(metrics={"accuracy": 0.9}, peak_memory_bytes=2**31)),
    ]
    assert as_markdown(comparison(gather(runs))).splitlines() == [
        "| method | runs | accuracy | F1 | trained parameters | time | peak memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| KaSA | 2 | 0.8500 ± 0.0707 | - | 73,920 | 78.9 s | 2.00 GiB |",
        "| LoRA | 1 | 0.7000 | 0.6000 | 73,920 | 78.9 s | 1.15 GiB |",
    ]


def test_spread_of_nothing_and_of_one_value():
    assert (spread([]), spread([0.5])) == ("-", "0.5000")


def test_markdown_in_names_is_escaped():
    table = as_markdown(scores(sample_runs.metrics(split="a|b*c", metrics={"[x](y)": 0.5}, last=None)))
    assert r"demo, a\|b\*c" in table
    assert r"\[x\](y)" in table


def test_code_fences_are_longer_than_backticks_in_the_code():
    assert markdown.code("a`b``c") == "``` a`b``c ```"
    assert markdown.block("```\nx\n```", "python").startswith("````python\n")


def test_f1_says_of_which_labels_it_is():
    assert metric_title("f1") == "F1"
    assert metric_title("f1", {"label_names": ["no", "yes"]}) == "F1 of yes"
    assert metric_title("f1", {"label_names": ["a", "b", "c"]}) == "macro F1"
    assert metric_title("accuracy", {"label_names": ["a", "b", "c"]}) == "accuracy"
