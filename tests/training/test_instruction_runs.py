"""Runs on instructions through TRL's SFTTrainer: the scores, the penalty, packing, and the files."""

import json
import math
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from kasatune.data.tasks import load_task
from kasatune.errors import MissingExtraError, RecipeError
from kasatune.evaluation.evaluate import evaluate
from kasatune.evaluation.predict import predict
from kasatune.evaluation.task_model import TaskModel
from kasatune.recipes.schema import Recipe
from kasatune.runs.metrics import read_metrics
from kasatune.training.train import train
from tests.text_toys import WORDS
from tests.toys import Recorder

pytest.importorskip("trl")


def rows(number, seed):
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        words = [WORDS[i] for i in torch.randint(len(WORDS), (4,), generator=draw)]
        found.append({"instruction": " ".join(words[:2]), "input": words[2], "output": f"{words[1]} {words[0]}"})
    return found


def recipe(model, folder, *, method=None, task=None, number=16, **training):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.json").write_text(json.dumps(rows(number, 1)))
    (folder / "validation.json").write_text(json.dumps(rows(10, 2)))
    return Recipe.model_validate(
        {
            "model": {"name": str(model)},
            "task": {
                "name": "instruction",
                "train": str(folder / "train.json"),
                "validation": str(folder / "validation.json"),
                "max_length": 32,
                **(task or {}),
            },
            "method": {"name": "kasa", "r": 2, "alpha": 4, **(method or {})},
            "training": {
                "epochs": 1,
                "batch_size": 8,
                "eval_batch_size": 4,
                "learning_rate": 1e-2,
                "warmup_ratio": 0.0,
                "device": "cpu",
                **training,
            },
            "generation": {"max_new_tokens": 5},
        }
    )


def events(run, name):
    return [
        event for event in map(json.loads, (run / "history.jsonl").read_text().splitlines()) if event["event"] == name
    ]


def test_a_run_learns_is_scored_again_and_answers(llama, tmp_path):
    run = train(recipe(llama, tmp_path / "data", epochs=6, number=32), tmp_path / "run")
    metrics = read_metrics(run)
    assert list(metrics["metrics"]) == ["loss", "perplexity"]
    assert metrics["metrics"]["perplexity"] == pytest.approx(math.exp(metrics["metrics"]["loss"]))
    scored = [event["metrics"]["loss"] for event in events(run, "evaluate")]
    assert scored[-1] < 0.85 * scored[0]
    assert evaluate(run)["metrics"] == metrics["metrics"]
    kept = json.loads((run / "predictions.json").read_text())
    assert len(kept["predictions"]) == len(kept["labels"]) == len(kept["inputs"]) == 8
    assert kept["inputs"][0] == f"{rows(10, 2)[0]['instruction']}\n\n{rows(10, 2)[0]['input']}"
    found = predict(run, kept["inputs"])
    assert [one["prediction"]["text"] for one in found] == kept["predictions"]
    assert (run / "adapter" / "adapter_model.safetensors").is_file()


def test_the_loss_of_a_step_is_that_of_its_answers(llama, tmp_path):
    made = recipe(llama, tmp_path / "data", number=8, max_steps=1)
    data = load_task(made.task)
    prepared = TaskModel.for_training(made, data)
    before = prepared.score(prepared.encode(data, "train"), data).metrics["loss"]
    run = train(made, tmp_path / "run")
    assert events(run, "train")[0]["loss"] == pytest.approx(before, abs=1e-4)


@pytest.mark.parametrize("pieces", [2, 4])
def test_pieces_of_a_step_give_the_same_weights_with_the_penalty(llama, tmp_path, pieces):
    method = {"gamma": 0.5, "beta": 0.1}
    whole = train(recipe(llama, tmp_path / "d", method=method), tmp_path / "whole")
    cut = train(recipe(llama, tmp_path / "d", method=method, gradient_accumulation=pieces), tmp_path / "cut")
    free = train(recipe(llama, tmp_path / "d", method={"gamma": 0.0, "beta": 0.0}), tmp_path / "free")
    a, b, c = (load_file(next((run / "kasa").glob("*.safetensors"))) for run in (whole, cut, free))
    names = [name for name in a if "tail" not in name]
    assert names and all(torch.allclose(a[name], b[name], atol=2e-4) for name in names)
    assert not all(torch.allclose(a[name], c[name], atol=2e-3) for name in names)


def test_packed_rows_do_not_see_each_other(llama, tmp_path):
    """All rows in one step, apart or packed: the same loss and, but for rounding, the same step."""
    apart = train(recipe(llama, tmp_path / "d", max_steps=1, batch_size=16), tmp_path / "apart")
    packed_recipe = recipe(llama, tmp_path / "d", max_steps=1, batch_size=16, packing=True)
    packed = train(packed_recipe, tmp_path / "packed")
    one, other = (events(run, "train")[0]["loss"] for run in (apart, packed))
    assert one == pytest.approx(other, abs=1e-4)
    a, b = (load_file(next((run / "kasa").glob("*.safetensors"))) for run in (apart, packed))
    assert all(torch.allclose(a[name], b[name], atol=1e-3) for name in a)


def test_packing_takes_fewer_steps(llama, tmp_path):
    apart = train(recipe(llama, tmp_path / "d", batch_size=2), tmp_path / "apart")
    packed = train(recipe(llama, tmp_path / "d", batch_size=2, packing=True), tmp_path / "packed")
    assert len(events(apart, "train")) == 8
    assert 1 < len(events(packed, "train")) < 8


@pytest.mark.parametrize("name", ["lora", "full"])
def test_other_methods_go_through_it_too(llama, tmp_path, name):
    run = train(recipe(llama, tmp_path / "d", method={"name": name}, max_steps=2), tmp_path / "run")
    assert evaluate(run)["metrics"] == read_metrics(run)["metrics"]


def test_without_trl_nothing_is_written(llama, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl.trainer.sft_config", None)
    monkeypatch.delitem(sys.modules, "kasatune.training.engines.sft", raising=False)
    with pytest.raises(MissingExtraError, match=r"kasatune\[sft\]"):
        train(recipe(llama, tmp_path / "d"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_adapted_output_layer_is_refused_and_nothing_is_written(llama, tmp_path):
    with pytest.raises(RecipeError, match=r"method.target_modules: the model's output layer is among the targets"):
        train(recipe(llama, tmp_path / "d", method={"target_modules": ["lm_head", "q_proj"]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_packing_is_for_generated_text_and_not_with_groups(llama, tmp_path):
    values = recipe(llama, tmp_path / "d", packing=True, group_by_length=False).model_dump()
    labelled = {**values["task"], "name": "classification", "text": "a", "label": "b", "loss_on": None}
    with pytest.raises(RecipeError, match=r"training.packing: true received; classification generates no text"):
        Recipe.model_validate({**values, "task": labelled, "generation": None})
    with pytest.raises(RecipeError, match=r"training.group_by_length: true received; training.packing fills"):
        recipe(llama, tmp_path / "d", packing=True, group_by_length=True)


NO_END = (
    "{% for m in messages %}{% if m.role == 'user' %}say {{ m.content }} : {% else %}{{ m.content }} # "
    "{% endif %}{% endfor %}"
)
OWN_END = NO_END.replace(" # ", " <s> ")


def same_answer(model, folder, answer, **changes):
    """A recipe on rows that all have the same answer."""
    given = recipe(model, folder, number=8, **changes)
    for name in ("train.json", "validation.json"):
        (folder / name).write_text(json.dumps([{"instruction": word, "output": answer} for word in WORDS]))
    return given


@pytest.mark.parametrize(("template", "words"), [(OWN_END, ""), (NO_END, "which is no end-of-turn token; the EOS")])
def test_answers_end_at_the_end_of_turn_that_was_learnt(llama, tmp_path, template, words):
    """The template's end of turn may be another token than the EOS token, or no token."""
    model = shutil.copytree(llama, tmp_path / "model")
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    display = Recorder()
    run = train(same_answer(model, tmp_path / "data", "one two", max_steps=1), tmp_path / "run", display=display)
    assert read_metrics(run)["generation"]["eos_token_id"] == ([1] if words else [0, 1])
    assert any("end-of-turn" in message for message in display.messages) == bool(words)
    assert any(words in message for message in display.messages)


def test_rows_that_lose_their_end_of_turn_are_reported(llama, tmp_path):
    display = Recorder()
    train(
        same_answer(llama, tmp_path / "data", "one two " * 9, task={"max_length": 14}, max_steps=1),
        tmp_path / "run",
        display=display,
    )
    words = "train: 8 of 8 rows are longer than 14 tokens and were cut; no row has its end-of-turn token left"
    assert any(message.startswith(words) for message in display.messages)
