"""A run on a mixture of tasks: each part's scores, its files, the scores again, resuming, and a comparison."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from kasatune.cli.run_summary import write_pages
from kasatune.data.tasks import load_task
from kasatune.errors import DataError, InputError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.predict import predict
from kasatune.evaluation.unrelated_text import UnrelatedText
from kasatune.experiments.compare.compare import compare
from kasatune.experiments.compare.spec import Search, make_spec
from kasatune.experiments.compare.variants import Variant
from kasatune.recipes.schema import Recipe
from kasatune.runs.directory import read_recipe
from kasatune.runs.metrics import read_metrics
from kasatune.training.plan import make_plan
from kasatune.training.train import train
from tests.text_toys import WORDS, lines, make_text_recipe, write_jsonl
from tests.toys import At

PARTS = ("copy", "instruction")


def make_mixture(model, folder, *, method=None, **training) -> Recipe:
    """Prompts with completions, weight 3, and conversations, weight 1; both on words that the toys know."""
    recipe = make_text_recipe(model, folder, method=method, **training)
    chats = [{"instruction": f"say {first} {second} :", "output": second} for first in WORDS[:4] for second in WORDS]
    copy = {key: getattr(recipe.task, key) for key in ("train", "validation", "prompt", "completion")}
    files = {
        "train": str(write_jsonl(folder / "chats.jsonl", chats[:8])),
        "validation": str(write_jsonl(folder / "more-chats.jsonl", chats[8:12])),
    }
    parts = [{"name": "text-generation", "title": "copy", "weight": 3, **copy}, {"name": "instruction", **files}]
    values = recipe.model_dump() | {"task": {"name": "mixture", "parts": parts, "max_length": 48}}
    return Recipe.model_validate(values)


@pytest.fixture(scope="module")
def run(llama, tmp_path_factory):
    place = tmp_path_factory.mktemp("mixture")
    out = train(make_mixture(llama, place / "data"), place / "run")
    write_pages(out)
    return out


def test_each_part_has_its_own_scores_and_all_have_a_loss(run):
    metrics = read_metrics(run)
    scores = metrics["metrics"]
    assert list(scores) == [
        "loss",
        "perplexity",
        *(f"copy/{name}" for name in ("bleu", "nist", "rouge_l", "cider", "loss", "perplexity")),
        *(f"instruction/{name}" for name in ("loss", "perplexity")),
    ]
    losses = json.loads((run / "predictions.json").read_text())["losses"]
    assert scores["loss"] == pytest.approx(sum(losses["sum"]) / sum(losses["tokens"]))
    for part in PARTS:
        own = [index for index, name in enumerate(losses["part"]) if name == part]
        mean = sum(losses["sum"][i] for i in own) / sum(losses["tokens"][i] for i in own)
        assert scores[f"{part}/loss"] == pytest.approx(mean)
    assert metrics["selected"]["metrics"].keys() >= {"loss", "copy/loss", "instruction/loss"}
    assert {name: part["drawn"] for name, part in metrics["parts"].items()} == {"copy": 24, "instruction": 8}


def test_a_part_is_scored_as_its_task_alone_is_scored(run):
    kept = json.loads((run / "predictions.json").read_text())
    assert Counter(kept["parts"])["instruction"] == 4
    assert kept["tasks"] == {"copy": "text-generation", "instruction": "instruction"}
    copied = [index for index, part in enumerate(kept["parts"]) if part == "copy"]
    assert all(kept["messages"][index] is None for index in copied)
    assert len(kept["base_predictions"]) == 5
    asked = predict(run, [kept["inputs"][index] for index in copied], part="copy")
    assert [item["prediction"]["text"] for item in asked] == [kept["predictions"][index] for index in copied]
    answered = predict(run, kept["inputs"][-4:], part="instruction")
    assert [item["prediction"]["text"] for item in answered] == kept["predictions"][-4:]


def test_evaluate_repeats_the_scores_exactly_and_scores_one_part(run, tmp_path):
    scores = read_metrics(run)["metrics"]
    assert evaluate(run)["metrics"] == scores
    alone = evaluate(run, part="copy")
    assert alone["split"] == "copy"
    assert alone["metrics"]["copy/bleu"] == scores["copy/bleu"]
    assert alone["metrics"]["copy/loss"] == pytest.approx(scores["copy/loss"])
    assert alone["metrics"]["loss"] == pytest.approx(scores["copy/loss"])
    other = evaluate(run, data=str(write_jsonl(tmp_path / "other.jsonl", lines(3, seed=5))), part="copy")
    assert set(other["metrics"]) == set(alone["metrics"])
    with pytest.raises(DataError, match="name the part whose rows these are"):
        evaluate(run, data=str(tmp_path / "other.jsonl"))
    with pytest.raises(InputError, match=r"--part: 'copi' received; .*did you mean copy"):
        evaluate(run, part="copi")


def test_new_text_needs_its_part_where_parts_are_asked_differently(run):
    with pytest.raises(InputError, match=r"--part: missing; .*copy, instruction"):
        predict(run, ["say red :"])


def test_report_and_card_show_the_parts(run):
    page, card = (run / "report.html").read_text(), (run / "README.md").read_text()
    for text in (page, card):
        assert "instruction: loss" in text
        assert "copy: BLEU" in text
        assert "24 an epoch, from 24" in text
    kept = json.loads((run / "predictions.json").read_text())
    assert kept["inputs"][0] in page
    assert kept["inputs"][-4].splitlines()[0] in page


def test_the_adapters_code_asks_as_the_first_part_was_asked(run):
    card = (run / "adapter" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=run / "adapter", capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == json.loads((run / "predictions.json").read_text())["predictions"][0]


def test_the_plan_counts_the_rows_of_each_part(run):
    plan = make_plan(read_recipe(run))
    assert plan.problems == ()
    assert (plan.rows, plan.steps_per_epoch) == (32, 4)
    assert plan.parts == read_metrics(run)["parts"]


def interrupt():
    raise KeyboardInterrupt


def test_a_resumed_run_ends_like_one_that_was_not_stopped(llama, tmp_path):
    recipe = make_mixture(llama, tmp_path / "data", epochs=2)
    straight = read_metrics(train(recipe, tmp_path / "straight"))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "stopped", display=At(3, interrupt))
    resumed = read_metrics(train(recipe, tmp_path / "stopped", resume=True))
    assert resumed["metrics"] == straight["metrics"]


def test_a_comparison_analyses_each_part(llama, tmp_path):
    recipe = make_mixture(llama, tmp_path / "data", max_steps=2)
    spec = make_spec(
        [(tmp_path / "mixed.yaml", recipe)],
        [Variant("kasa", "kasa", {}), Variant("lora", "lora", {})],
        [0, 1],
        search=Search(trials=1),
        primary="mixed:copy/rouge_l:kasa:lora",
        margins=["loss=0.1"],
        unrelated=UnrelatedText(tokens=320),
    )
    (task,) = compare(spec, tmp_path / "out")["tasks"]
    entry = next(entry for entry in task["results"] if entry["method"] == "kasa")
    assert {"copy/loss", "copy/rouge_l", "instruction/loss", "forgetting"} <= set(entry["endpoints"])
    difference = entry["endpoints"]["copy/rouge_l"]["difference"]
    assert difference["family"] == "primary"
    assert difference["rows"] == len(set(load_task(recipe.task).splits["copy"].first))
    assert entry["endpoints"]["instruction/loss"]["difference"]["margin"] == 0.1
    scores = [run["metrics"]["copy/loss"] for run in entry["runs"]]
    assert entry["endpoints"]["copy/loss"]["values"] == scores
