"""`training.eval_steps`, `save_steps` and `patience`: evaluations within an epoch, checkpoints, and stopping early."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kasatune.errors import OutputError
from kasatune.evaluation.scoring import Scores
from kasatune.evaluation.task_model import TaskModel
from kasatune.recipes.schema import to_yaml
from kasatune.runs.provenance import recipe_sha256
from kasatune.training.train import train
from tests.toys import At, Recorder, make_recipe
from tests.training.test_resume import ctrl_c, kill

KEYS = ("eval_steps", "save_steps", "patience")


def evaluated(run: Path) -> list[tuple[int, float]]:
    """(step, epoch) of the evaluations of a run."""
    events = map(json.loads, (run / "history.jsonl").read_text().splitlines())
    return [(event["step"], event["epoch"]) for event in events if event["event"] == "evaluate"]


def weights(run: Path) -> bytes:
    return (run / "kasa" / "adapter_model.safetensors").read_bytes()


def test_recipes_that_do_not_set_the_keys_keep_their_text_and_hash(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path)
    assert not any(key in to_yaml(recipe) for key in KEYS)
    given = make_recipe(bert, tmp_path, **dict.fromkeys(KEYS))
    assert recipe_sha256(given) == recipe_sha256(recipe)
    assert recipe_sha256(make_recipe(bert, tmp_path, patience=3)) != recipe_sha256(recipe)
    assert "patience: 3" in to_yaml(make_recipe(bert, tmp_path, patience=3))


def test_a_run_of_one_epoch_has_a_curve_and_the_same_weights(bert, tmp_path):
    plain = train(make_recipe(bert, tmp_path, epochs=1, select="last"), tmp_path / "plain")
    assert evaluated(plain) == [(3, 1.0)]
    run = train(make_recipe(bert, tmp_path, epochs=1, select="last", eval_steps=1), tmp_path / "run")
    assert evaluated(run) == [(0, 0.0), (1, pytest.approx(1 / 3)), (2, pytest.approx(2 / 3)), (3, 1.0)]
    assert weights(run) == weights(plain)
    coarse = train(make_recipe(bert, tmp_path, epochs=1, eval_steps=2), tmp_path / "coarse")
    assert [step for step, _ in evaluated(coarse)] == [0, 2, 3]


def scores_of_steps(monkeypatch, accuracies: list[float]) -> None:
    """Evaluations return these accuracies, one after another."""
    left = iter(accuracies)
    scored = TaskModel.score

    def score(self: TaskModel, examples: Any, data: Any) -> Scores:
        return replace(scored(self, examples, data), metrics={"accuracy": next(left, 0.0)})

    monkeypatch.setattr(TaskModel, "score", score)


def test_patience_ends_a_run_and_the_best_state_is_saved(bert, tmp_path, monkeypatch):
    scores_of_steps(monkeypatch, [1.0, 0.5, 0.9, 0.8, 0.9, 0.7])
    display = Recorder()
    run = train(make_recipe(bert, tmp_path, epochs=9, eval_steps=1, patience=2), tmp_path / "run", display=display)
    assert display.steps == [1, 2, 3, 4]  # 0.9 again at step 4 is no better score than at step 2
    assert [step for step, _ in evaluated(run)] == [0, 1, 2, 3, 4]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["selected"]["step"] == 2  # not 0, where the score was highest: nothing was trained
    assert metrics["last"]["step"] == 4
    assert "interrupted" not in metrics or not metrics["interrupted"]
    assert any("2 evaluations without a better score" in message for message in display.messages)


def test_patience_counts_epochs_without_eval_steps_and_over_a_resume(bert, tmp_path, monkeypatch):
    recipe = make_recipe(bert, tmp_path, epochs=9, patience=2)
    scores_of_steps(monkeypatch, [0.9, 0.5])
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=At(7, ctrl_c))
    scores_of_steps(monkeypatch, [0.6])
    display = Recorder()
    run = train(recipe, tmp_path / "run", resume=True, display=display)
    assert display.steps == [9]
    assert json.loads((run / "metrics.json").read_text())["selected"]["step"] == 3


def test_a_kill_loses_no_more_than_save_steps(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, epochs=1, save_steps=1)
    with pytest.raises(SystemExit):
        train(recipe, tmp_path / "run", display=At(3, kill))
    display = Recorder()
    train(recipe, tmp_path / "run", resume=True, display=display)
    assert display.steps == [3]


def test_a_run_is_resumed_with_the_keys_that_it_was_started_with(bert, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(make_recipe(bert, tmp_path, epochs=1), tmp_path / "run", display=At(1, ctrl_c))
    with pytest.raises(OutputError, match=r"training\.eval_steps: None then, 1 now"):
        train(make_recipe(bert, tmp_path, epochs=1, eval_steps=1), tmp_path / "run", resume=True)
