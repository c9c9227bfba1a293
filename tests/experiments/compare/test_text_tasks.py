"""Tasks that generate text are compared: loss per row, scores of the texts, the untouched base, texts side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kasatune.adapter_tools.verify import verify
from kasatune.data.tasks import load_task
from kasatune.errors import InputError
from kasatune.evaluation.unrelated_text import UnrelatedText
from kasatune.experiments.compare.comparison_file import write_comparison
from kasatune.experiments.compare.endpoint_rows import endpoint_names, run_rows
from kasatune.experiments.compare.search_holdout import search_data
from kasatune.experiments.compare.spec import Search, make_spec
from kasatune.experiments.compare.variants import parse_variants
from kasatune.metrics.generation import generation_scores, sentence_bleu_segments
from tests.experiments.compare.toys import run
from tests.text_toys import make_text_recipe


def make_text_spec(llama, folder, methods="lora,rslora", **training):
    recipe = make_text_recipe(llama, folder, **{"learning_rate": 0.02, "epochs": 2, **training})
    search = Search("grid", 2, seeds=1, extensions=0)
    text = UnrelatedText(tokens=320)
    return make_spec([(Path("toy.yaml"), recipe)], parse_variants(methods), (0, 1), search=search, unrelated=text)


@pytest.fixture(scope="module")
def compared(llama, tmp_path_factory):
    """The directory and content of a comparison of text."""
    folder = tmp_path_factory.mktemp("text")
    spec = make_text_spec(llama, folder)
    found, lines = run(spec, folder / "out")
    return folder / "out", write_comparison(found, folder / "out"), lines, spec


def test_the_base_and_every_method_are_scored_and_the_fitted_head_is_left_out(compared):
    _, found, lines, _ = compared
    (task,) = found["tasks"]
    assert [entry["method"] for entry in task["results"]] == ["lora", "rslora"]
    assert sum("untouched base" in line for line in lines) == 1 and len(lines) == 1 + 2 * (2 + 2)
    assert task["primary"] == "loss" and task["majority"] is None
    assert task["base"]["metrics"]["loss"] > min(entry["mean"] for entry in task["results"])
    assert task["counts"]["against_base"][0] < 0
    for entry in task["results"]:
        assert set(entry["endpoints"]) >= {"rouge_l", "sentence_bleu", "forgetting"}
        assert entry["collapsed"]["seeds"] == 2 and entry["costs"]["retention"]["kind"] == "causal_lm_loss"


def test_differences_are_paired_by_prompt(compared):
    _, found, _, spec = compared
    rslora = found["tasks"][0]["results"][1]
    rows = load_task(spec.tasks[0].recipe.task).splits["validation"]
    assert rslora["difference"]["rows"] == len(set(rows.first)) > 0
    assert rslora["endpoints"]["rouge_l"]["difference"]["rows"] == len(set(rows.first))
    assert rslora["difference"]["verdict"] != "not tested" and rslora["difference"]["margin"] == 0.02
    assert rslora["endpoints"]["forgetting_matched"]["difference"]["seeds"] == 2


def test_the_values_of_the_rows_have_the_scores_as_their_means(compared):
    out, found, _, _ = compared
    for entry in found["tasks"][0]["results"]:
        for one in entry["runs"]:
            folder = out / "runs" / one["run"]
            answers = json.loads((folder / "predictions.json").read_text(encoding="utf-8"))
            assert run_rows(folder, "text-generation", "loss").mean() == pytest.approx(one["metrics"]["loss"], rel=1e-5)
            rouge = generation_scores(["rouge_l"], answers["predictions"], answers["labels"])["rouge_l"]
            assert run_rows(folder, "text-generation", "rouge_l").mean() == pytest.approx(rouge)
            expected = np.mean(sentence_bleu_segments(answers["predictions"], answers["labels"]))
            assert run_rows(folder, "text-generation", "sentence_bleu").mean() == pytest.approx(expected)
            assert sum(answers["losses"]["tokens"]) > 0 and len(answers["losses"]["prompt"]) == 9


def test_the_texts_stand_side_by_side(compared):
    out, found, _, _ = compared
    samples = found["tasks"][0]["texts"]
    assert len(samples) == 5 and set(samples[0]["texts"]) == {"lora", "rslora"} and samples[0]["base"] is not None
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Texts side by side" in page and "untouched base" in page and "Loss against forgetting" in page
    assert "Texts side by side" in (out / "comparison.md").read_text(encoding="utf-8")


def test_trials_of_the_search_write_no_text(compared):
    out, found, _, _ = compared
    for trial in found["tasks"][0]["results"][0]["search"]["trials"]:
        answers = json.loads((out / "runs" / trial["run"] / "predictions.json").read_text(encoding="utf-8"))
        assert answers["predictions"] == [] and trial["score"] is not None


def test_the_comparison_is_verified_and_a_repetition_executes_nothing(compared):
    out, found, _, spec = compared
    assert [check.passed for check in verify(out)] == [True] * 5
    again, lines = run(spec, out)
    assert lines == [] and again["tasks"] == found["tasks"]


def test_the_search_holds_out_complete_prompts(llama, tmp_path):
    data = load_task(make_text_recipe(llama, tmp_path, train=60).task)
    splits = search_data(data).splits
    assert not set(splits["train"].first) & set(splits["validation"].first)
    assert len(splits["train"]) + len(splits["validation"]) == 60
    assert 12 <= len(splits["validation"]) <= 24


def test_a_text_task_needs_a_method_that_trains(llama, tmp_path):
    with pytest.raises(InputError, match="generates text"):
        make_text_spec(llama, tmp_path, "head")


def test_endpoints_by_task():
    assert endpoint_names("e2e", "loss") == ["loss", "rouge_l", "sentence_bleu", "forgetting"]
    assert endpoint_names("commonsense/boolq", "loss") == ["loss", "accuracy", "acc_norm", "forgetting"]
    assert endpoint_names("instruction", "loss") == ["loss", "forgetting"]
    assert endpoint_names("glue/sst2", "accuracy") == ["accuracy", "forgetting"]
