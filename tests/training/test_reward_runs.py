"""Runs of the task reward through TRL's RewardTrainer: loss, scores, predictions and files."""

import json
import math

import pytest
import torch

from kasatune.data.tasks import load_task
from kasatune.errors import RecipeError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.predict import predict
from kasatune.evaluation.task_model import TaskModel
from kasatune.methods.table import METHODS
from kasatune.reports.card import write_card
from kasatune.reports.loading_snippet import loading_snippet
from kasatune.reports.run_page import write_report
from kasatune.reports.run_record import read_run
from kasatune.runs.metrics import read_metrics
from kasatune.training.plan import make_plan
from kasatune.training.train import train
from tests.training.preference_rows import pair_recipe
from tests.training.test_instruction_runs import events

pytest.importorskip("trl")


def test_a_run_learns_is_scored_again_and_predicts(llama, tmp_path, monkeypatch, capsys):
    method = {"r": 4, "target_modules": "all-linear"}
    recipe = pair_recipe(llama, tmp_path / "d", task="reward", method=method, epochs=4)
    data = load_task(recipe.task)
    before = TaskModel.for_training(recipe, data)
    start = before.score(before.encode(data, "train"), data).metrics
    plan = make_plan(recipe)
    assert not plan.problems and (plan.steps, plan.head_parameters) == (8, 32)
    run = train(recipe, tmp_path / "run")
    write_report(run)
    write_card(run)
    assert "margin of the rewards" in (run / "report.html").read_text(encoding="utf-8")
    metrics = read_metrics(run)
    assert list(metrics["metrics"]) == ["accuracy", "margin", "loss"]
    assert metrics["metrics"]["loss"] < 0.6 * start["loss"]
    assert metrics["metrics"]["accuracy"] > 0.8
    assert evaluate(run)["metrics"] == metrics["metrics"]

    pairs = json.loads((tmp_path / "d" / "validation.json").read_text())
    answers = json.loads((run / "predictions.json").read_text())
    for kind, index in (("chosen", 0), ("rejected", 1)):
        rewards = [item["prediction"] for item in predict(run, [(row["prompt"], row[kind]) for row in pairs])]
        assert rewards == pytest.approx([row[index] for row in answers["scores"]], abs=1e-5)
    assert predict(run, [f"{pairs[0]['prompt']}\t{pairs[0]['chosen']}"])[0]["prediction"] == pytest.approx(
        answers["scores"][0][0], abs=1e-5
    )
    snippet = loading_snippet(read_run(run)).replace("Name a colour.", pairs[0]["prompt"])
    code = snippet.replace('"Blue."', json.dumps(pairs[0]["chosen"]))
    monkeypatch.chdir(run)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    assert float(capsys.readouterr().out) == pytest.approx(answers["scores"][0][0], abs=1e-4)


def test_the_loss_of_a_step_is_the_mean_over_its_pairs_in_any_number_of_pieces(llama, tmp_path):
    recipe = pair_recipe(llama, tmp_path / "d", task="reward", number=11)
    data = load_task(recipe.task)
    before = TaskModel.for_training(recipe, data)
    rows = before.encode(data, "train")
    runs = [
        train(
            pair_recipe(llama, tmp_path / "d", task="reward", number=11, gradient_accumulation=p), tmp_path / f"in-{p}"
        )
        for p in (1, 4)
    ]
    one, other = ([event["loss"] for event in events(run, "train")] for run in runs)
    assert one == pytest.approx(other, abs=1e-4)
    assert all(math.isfinite(loss) for loss in one) and len(one) == 2
    everything = pair_recipe(llama, tmp_path / "d", task="reward", number=11, batch_size=11, max_steps=1)
    first = events(train(everything, tmp_path / "everything"), "train")[0]["loss"]
    assert first == pytest.approx(before.score(rows, data).metrics["loss"], abs=1e-4)
    assert torch.tensor(first).isfinite()


@pytest.mark.parametrize("name", [info.name for info in METHODS.values() if info.no_reward])
def test_methods_that_read_another_loss_are_refused(tmp_path, name):
    with pytest.raises(RecipeError, match=f'"{name}" received; it cannot do reward'):
        pair_recipe("unused", tmp_path, task="reward", method={"name": name})


def test_akasa_measures_the_activations_of_the_pairs(llama, tmp_path):
    method = {"name": "akasa", "r": 2, "target_modules": "all-linear"}
    recipe = pair_recipe(llama, tmp_path / "d", task="reward", method=method, max_steps=1)
    plan = make_plan(recipe)
    assert not plan.problems and plan.calibration.source == "task"
    metrics = read_metrics(train(recipe, tmp_path / "run"))
    assert math.isfinite(metrics["metrics"]["loss"]) and metrics["method"] == "akasa"
