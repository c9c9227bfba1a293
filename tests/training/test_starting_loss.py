"""The losses before the first step: in metrics.json, on the terminal and in the report."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from kasatune.data.tasks import load_task
from kasatune.evaluation.task_model import TaskModel
from kasatune.methods.table import METHODS
from kasatune.recipes.schema import Recipe
from kasatune.reports.run_page import facts
from kasatune.reports.run_record import read_run
from kasatune.reports.text_rows import position_chart
from kasatune.runs.metrics import read_metrics
from kasatune.training.starting_loss import messages
from kasatune.training.text_losses import measure_start
from kasatune.training.train import train
from tests.text_toys import make_text_recipe
from tests.toys import Recorder, make_bert, make_recipe


def run_of(base, place, method, **training):
    recipe = make_text_recipe(base, place / "data", method=method, max_steps=2, **training)
    display = Recorder()
    return recipe, train(recipe, place / "run", display=display), display


def base_losses(recipe):
    """Both losses of the plain base model, row by row."""
    data = load_task(recipe.task)
    untouched = TaskModel.for_training(Recipe.model_validate(recipe.model_dump() | {"method": {"name": "lora"}}), data)
    model = AutoModelForCausalLM.from_pretrained(recipe.model.name).eval()
    rows = untouched.encode(data, "validation").rows[:64]
    total = count = 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        learnt = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=labels).loss) * learnt
        count += learnt
    return total / count


def test_a_method_that_drops_triplets_starts_elsewhere_than_its_base(llama, tmp_path):
    recipe, out, display = run_of(llama, tmp_path, {"name": "kasa", "r": 8})
    start = read_metrics(out)["start"]
    assert start["rows"] <= 64 and start["unrelated_texts"] == 16
    assert start["base"]["loss"] == pytest.approx(base_losses(recipe), rel=1e-5)
    assert start["start"]["loss"] != pytest.approx(start["base"]["loss"], rel=1e-4)
    assert start["start"]["unrelated_loss"] != pytest.approx(start["base"]["unrelated_loss"], rel=1e-4)
    line = next(message for message in display.messages if message.startswith("before the first step: loss "))
    assert f"(base {start['base']['loss']:.3f}), on unrelated text {start['start']['unrelated_loss']:.3f}" in line
    assert ("loss of the untouched base", f"{start['base']['loss']:.4f}") in facts(read_run(out))


def test_the_losses_after_training_are_those_of_the_saved_model(llama, tmp_path):
    recipe, out, _ = run_of(llama, tmp_path, {"name": "lora", "r": 4}, learning_rate=0.5)
    metrics = read_metrics(out)
    saved = TaskModel.for_saved_run(recipe, None, out)
    start = measure_start(saved, saved.encode(load_task(recipe.task), "validation"))["start"]
    for key in ("loss", "unrelated_loss"):
        assert metrics["end"][key] == pytest.approx(start[key], rel=1e-6)
    ranges, again = metrics["end"]["by_position"], start["by_position"]
    assert [entry["loss"] for entry in ranges] == pytest.approx([entry["loss"] for entry in again], rel=1e-6)
    tokens = sum(entry["tokens"] for entry in ranges)
    assert sum(entry["tokens"] * entry["loss"] for entry in ranges) / tokens == pytest.approx(start["loss"], rel=1e-5)
    lines = position_chart(read_run(out)).lines
    assert [line.label for line in lines] == ["untouched base", "after training"]
    assert metrics["end"]["unrelated_loss"] != pytest.approx(metrics["start"]["base"]["unrelated_loss"], rel=1e-3)
    assert ("loss on unrelated text after training", f"{start['unrelated_loss']:.4f}") in facts(read_run(out))


@pytest.mark.parametrize("method", ["akasa", "lora", "pissa"])
def test_other_methods_start_at_the_base(llama, tmp_path, method):
    recipe, out, _ = run_of(llama, tmp_path, {"name": method, "r": 4})
    start = read_metrics(out)["start"]
    assert start["start"] == start["base"]
    assert start["base"]["loss"] == pytest.approx(base_losses(recipe), rel=1e-4)


def test_akasa_that_drops_a_component_is_measured_against_its_base(llama, tmp_path):
    recipe, out, _ = run_of(llama, tmp_path, {"name": "akasa", "r": 4, "drop": 4})
    start = read_metrics(out)["start"]
    assert start["base"]["loss"] == pytest.approx(base_losses(recipe), rel=1e-5)
    assert start["start"] != start["base"]


def test_a_classification_has_no_such_losses(tmp_path):
    out = train(make_recipe(make_bert(tmp_path / "bert"), tmp_path / "data"), tmp_path / "run")
    assert "start" not in read_metrics(out)


@pytest.mark.parametrize(("rise", "warned"), [(0.05, False), (0.2, True)])
def test_a_rise_above_a_tenth_of_a_nat_is_a_warning_with_its_remedy(rise, warned):
    measured = {
        "base": {"loss": 2.0, "unrelated_loss": 3.0},
        "start": {"loss": 2.0 + rise, "unrelated_loss": 3.0},
    }
    lines = messages(measured, METHODS["kasa"])
    assert (len(lines) == 2) is warned
    if warned:
        assert "changed the loss by +0.20 nats on the task and by +0.00 on unrelated text" in lines[1]
        assert "method.name: akasa, method.truncate_by: activation or method.drop: 0" in lines[1]


def test_a_method_that_cannot_be_switched_off_shows_its_start_alone():
    lines = messages({"base": None, "start": {"loss": 2.0, "unrelated_loss": 3.0}}, METHODS["peft-kasa"])
    assert lines == ["before the first step: loss 2.000, on unrelated text 3.000"]
