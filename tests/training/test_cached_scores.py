"""Scores of training stand for the saved files only where these hold the same model bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.task_model import TaskModel
from kasatune.methods.kasa import Kasa
from kasatune.training.train import train
from tests.toys import make_recipe

EPOCHS, BATCH, ROWS = 2, 4, 13


@pytest.fixture
def scored(monkeypatch):
    """The number of rows of each pass over rows that were scored."""
    passes = []
    logits = TaskModel.logits

    def counting(self, examples):
        passes.append(len(examples))
        return logits(self, examples)

    monkeypatch.setattr(TaskModel, "logits", counting)
    return passes


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["kasa", "lora", "full", "bitfit"])
@pytest.mark.parametrize("select", ["best", "last"])
def test_equal_files_are_not_scored_again(name, select, scored, bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, method={"name": name}, epochs=EPOCHS, select=select)
    run = train(recipe, tmp_path / "run")
    assert scored == [ROWS] * EPOCHS + [ROWS % BATCH], "each epoch, then one batch of the loaded model"
    assert evaluate(run)["metrics"] == metrics_of(run)["metrics"]


@pytest.mark.parametrize("part", ["kasa_sigma", "kasa_tail_U"])
def test_files_that_hold_another_model_are_scored(part, scored, bert, tmp_path, monkeypatch):
    save = Kasa.save

    def spoiled(self, model, run_dir, base_name):
        save(self, model, run_dir, base_name)
        file = run_dir / "kasa" / "adapter_model.safetensors"
        tensors = load_file(file)
        changed = {key: torch.roll(t, 1, 0) * 3 if part in key else t for key, t in tensors.items()}
        save_file(changed, file, metadata={"format": "pt"})

    monkeypatch.setattr(Kasa, "save", spoiled)
    run = train(make_recipe(bert, tmp_path, epochs=EPOCHS), tmp_path / "run")
    assert scored[-1] == ROWS
    found = metrics_of(run)
    assert found["metrics"] != found["selected"]["metrics"]
    assert evaluate(run)["metrics"] == found["metrics"]
