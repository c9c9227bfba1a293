"""Runs that were stopped: what they leave can be used, and going on gives what never stopping gives."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kasatune.errors import OutputError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.predict import predict
from kasatune.evaluation.scoring import Scores
from kasatune.evaluation.task_model import TaskModel
from kasatune.training.train import train
from tests.toys import At, Recorder, make_recipe

DROPOUT = {"method": {"dropout": 0.2}, "epochs": 3}


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def raise_keyboard_interrupt() -> None:
    raise KeyboardInterrupt


def kill() -> None:
    """As good as SIGKILL: nothing of the run's own clean-up catches it."""
    raise SystemExit


def files(run: Path) -> dict[str, bytes]:
    """What two equal runs have in common byte for byte; history and metrics without their seconds."""
    found = {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in ("metrics.json", "history.jsonl")
    }
    events = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    for part in (*events, metrics):
        part.pop("seconds", None)
    metrics.pop("peak_memory_bytes")
    return {**found, "history": json.dumps(events).encode(), "metrics": json.dumps(metrics).encode()}


@pytest.mark.parametrize(
    ("name", "step", "reached"),
    [("kasa", 1, 2), ("kasa", 2, 3), ("kasa", 3, 3), ("kasa", 7, 8), ("peft-kasa", 4, 5), ("full", 4, 5)],
)
def test_ctrl_c_then_resume_gives_what_an_uninterrupted_run_gives(name, step, reached, bert, tmp_path):
    # The step under way is finished; at the end of an epoch (3, 6) its evaluation too.
    recipe = make_recipe(bert, tmp_path, method={"name": name, "dropout": 0.2}, epochs=3)
    whole = files(train(recipe, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", display=At(step, ctrl_c))
    display = Recorder()
    train(recipe, tmp_path / "run", resume=True, display=display)
    assert display.steps == list(range(reached + 1, 10))
    assert files(tmp_path / "run") == whole


def test_of_equal_scores_the_one_of_lower_loss_is_kept_also_after_a_resume(bert, tmp_path, monkeypatch):
    losses = iter([0.82, 0.01, 0.5])
    scored = TaskModel.score

    def score(self: TaskModel, examples: Any, data: Any) -> Scores:
        measured = scored(self, examples, data)
        return replace(measured, metrics={"accuracy": 1.0, "loss": next(losses, 9.0)})

    monkeypatch.setattr(TaskModel, "score", score)
    recipe = make_recipe(bert, tmp_path, epochs=3)
    with pytest.raises(KeyboardInterrupt):  # in the third epoch, when the best one is already over
        train(recipe, tmp_path / "run", display=At(7, ctrl_c))
    run = train(recipe, tmp_path / "run", resume=True)
    selected = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["selected"]
    assert (selected["epoch"], selected["metrics"]["loss"]) == (2.0, 0.01)


def test_ctrl_c_in_the_last_step_is_not_forgotten(bert, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(make_recipe(bert, tmp_path), tmp_path / "run", display=At(6, ctrl_c))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert "interrupted" not in metrics
    assert not (tmp_path / "run" / "unfinished").exists()


@pytest.mark.parametrize("action", [ctrl_c, raise_keyboard_interrupt])
@pytest.mark.parametrize("step", [1, 4])
def test_an_interrupted_run_is_usable(action, step, bert, tmp_path):
    display = At(step, action)
    with pytest.raises(KeyboardInterrupt):
        train(make_recipe(bert, tmp_path), tmp_path / "run", display=display)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["interrupted"] is True
    reached = step + 1 if action is ctrl_c else step
    assert metrics["stopped_at"] == reached
    assert display.finished == 1
    again = evaluate(tmp_path / "run")
    if step == 4:
        assert metrics["selected"]["step"] == 3
        assert again["metrics"] == metrics["metrics"] == metrics["last"]["metrics"]
    else:
        assert metrics["metrics"] == {}
        assert 0 <= again["metrics"]["accuracy"] <= 1
    assert predict(tmp_path / "run", ["good bad"])[0]["prediction"]["label"] in metrics["label_names"]
    steps = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [event["step"] for event in steps if event["event"] == "train"] == list(range(1, reached + 1))


def test_ctrl_c_is_handled_as_before_once_a_run_is_over(bert, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(make_recipe(bert, tmp_path), tmp_path / "run", display=At(2, ctrl_c))
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("step", [1, 5])
def test_a_killed_run_leaves_no_half_file_and_resumes_to_the_same_result(step, bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, **DROPOUT)
    whole = files(train(recipe, tmp_path / "whole"))
    with pytest.raises(SystemExit):
        train(recipe, tmp_path / "run", display=At(step, kill))
    assert not (tmp_path / "run" / "metrics.json").exists()
    with (tmp_path / "run" / "history.jsonl").open("a", encoding="utf-8") as history:
        history.write('{"event": "train", "st')
    train(recipe, tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == whole


def test_a_run_that_was_killed_while_it_was_scored_resumes_to_the_same_result(bert, tmp_path, monkeypatch):
    recipe = make_recipe(bert, tmp_path, **DROPOUT)
    whole = files(train(recipe, tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("kasatune.training.run.TaskModel.for_saved_run", lambda *_, **__: kill())
        train(recipe, tmp_path / "run")
    train(recipe, tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == whole


def test_checkpoints_hold_the_trained_parameters_and_are_few(bert, tmp_path):
    sizes = []

    def look() -> None:
        work = tmp_path / "run" / "unfinished"
        sizes.append({p.name: p.stat().st_size for p in work.rglob("*.safetensors")})
        assert len(list(work.glob("checkpoint-*"))) == 2
        assert len(list(work.glob("best-*"))) <= 2

    train(make_recipe(bert, tmp_path, epochs=4), tmp_path / "run", display=At(10, look))
    base = (bert / "model.safetensors").stat().st_size
    assert all(size < base / 4 for found in sizes for size in found.values())
    assert sizes


def test_resuming_what_was_never_begun_begins_it(bert, tmp_path):
    train(make_recipe(bert, tmp_path), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_resuming_a_finished_run_changes_nothing(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path)
    run = train(recipe, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (run / ".lock").touch()  # of a run that was killed when all but this was done
    (run / "unfinished" / "checkpoint-6").mkdir(parents=True)
    display = Recorder()
    train(recipe, run, resume=True, display=display)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert not (run / "unfinished").exists()
    assert "already finished" in display.messages[0]
    assert not display.steps


def test_resuming_with_another_recipe_is_refused_by_name(bert, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(make_recipe(bert, tmp_path), tmp_path / "run", display=At(2, ctrl_c))
    with pytest.raises(OutputError, match=r"training\.learning_rate: 0\.01 then, 0\.02 now"):
        train(make_recipe(bert, tmp_path, learning_rate=2e-2), tmp_path / "run", resume=True)


def test_a_run_cannot_resume_in_a_directory_of_something_else(bert, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="no run to resume"):
        train(make_recipe(bert, tmp_path), tmp_path / "run", resume=True)
