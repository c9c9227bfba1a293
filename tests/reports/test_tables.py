from __future__ import annotations

import io

from rich.console import Console

from kasatune.reports import markdown
from kasatune.reports.tables import comparison_markdown, comparison_table, gather, scores_markdown, scores_table, spread
from tests.reports import sample_runs


def shown(table) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def test_scores_stand_beside_those_of_the_last_epoch():
    assert scores_markdown(sample_runs.metrics()).splitlines() == [
        "| score on validation | selected | last epoch |",
        "| --- | ---: | ---: |",
        "| accuracy | 0.8725 | 0.8675 |",
        "| F1 | 0.8712 | 0.8660 |",
        "| loss | 0.4120 | 0.4300 |",
    ]
    assert "0.8712" in shown(scores_table(sample_runs.metrics()))


def test_scores_without_a_last_epoch_have_one_column():
    assert scores_markdown(sample_runs.metrics(last=None)).splitlines()[0] == "| score on validation | selected |"


def test_a_comparison_gives_mean_and_sample_deviation_over_the_runs_of_a_method():
    runs = [
        ("KaSA", sample_runs.metrics(metrics={"accuracy": 0.8})),
        ("LoRA", sample_runs.metrics(metrics={"accuracy": 0.7, "f1": 0.6})),
        ("KaSA", sample_runs.metrics(metrics={"accuracy": 0.9}, peak_memory_bytes=2**31)),
    ]
    assert comparison_markdown(gather(runs)).splitlines() == [
        "| method | runs | accuracy | F1 | trained | time | peak memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| KaSA | 2 | 0.8500 ± 0.0707 | - | 73,920 | 78.9 s | 2.00 GiB |",
        "| LoRA | 1 | 0.7000 | 0.6000 | 73,920 | 78.9 s | 1.15 GiB |",
    ]
    assert "0.8500 ± 0.0707" in shown(comparison_table(gather(runs), "methods"))


def test_spread_of_nothing_and_of_one_value():
    assert (spread([]), spread([0.5])) == ("-", "0.5000")


def test_marks_in_names_do_not_act():
    metrics = sample_runs.metrics(split="a|b*c", metrics={"[red]x[/red]": 0.5}, last=None)
    assert r"score on a\|b\*c" in scores_markdown(metrics).splitlines()[0]
    assert "[red]x[/red]" in shown(scores_table(metrics))


def test_code_is_fenced_by_more_backticks_than_it_holds():
    assert markdown.code("a`b``c") == "``` a`b``c ```"
    assert markdown.block("```\nx\n```", "python").startswith("````python\n")
