"""What training refuses before its first step without the weights, `kasatune plan` refuses with the same words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kasatune.errors import DivergedError, KasatuneError, RecipeError
from kasatune.recipes.schema import Recipe
from kasatune.training.plan import NO_WARMUP, make_plan
from kasatune.training.train import train
from tests.text_toys import make_llama
from tests.toys import Recorder, make_recipe

BROKEN_TEMPLATE = "{{ raise_exception('no such role') }}"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("llama"), max_position_embeddings=512)


def without(model: Path, folder: Path, *names: str) -> Path:
    shutil.copytree(model, folder)
    for name in names:
        (folder / name).unlink()
    return folder


def instruction(model: Path, folder: Path, **changes: Any) -> Recipe:
    (folder / "chat.jsonl").write_text(
        "\n".join(json.dumps({"instruction": "red", "output": "blue"}) for _ in range(6))
    )
    task = {"name": "instruction", "train": str(folder / "chat.jsonl"), "validation": 0.5, "max_length": 32}
    sections = {
        "model": {"name": str(model)},
        "task": task,
        "method": {"r": 2, "alpha": 4, **changes.pop("method", {})},
        "training": {"epochs": 1, "batch_size": 2, "device": "cpu", **changes},
        "generation": {"max_new_tokens": 4},
    }
    return Recipe.model_validate(sections)


def refused(recipe: Recipe, out: Path, words: str) -> None:
    (problem,) = [problem for problem in make_plan(recipe).problems if words in problem]
    with pytest.raises(KasatuneError) as refusal:
        train(recipe, out)
    assert problem in str(refusal.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "training"),
    [
        ("training.device: cuda is not available", {"device": "cuda"}),
        ('training.report_to: "trackio" is not installed: pip install trackio', {"report_to": ["trackio"]}),
        ("training.precision: float16 needs a GPU", {"device": "auto", "precision": "float16"}),
    ],
)
def test_what_this_machine_lacks(bert, tmp_path, monkeypatch, words, training):
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available=False: None)
    monkeypatch.setattr("kasatune.recipes.machine_checks.importlib.util.find_spec", lambda name: None)
    refused(make_recipe(bert, tmp_path, **training), tmp_path / "run", words)


def test_a_missing_extra(llama, tmp_path, monkeypatch):
    from kasatune.errors import MissingExtraError

    def load_engine(name):
        raise MissingExtraError("the task instruction", "sft", ["trl"])

    monkeypatch.setattr("kasatune.training.preflight.load_engine", load_engine)
    refused(instruction(llama, tmp_path), tmp_path / "run", "pip install 'kasatune[sft]'")


def test_tails_that_are_not_there(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, method={"tails": str(tmp_path / "nowhere")})
    refused(recipe, tmp_path / "run", "not a directory that `kasatune decompose` finished")


def test_a_folder_without_weights_suffices_for_a_plan_that_notes_them(bert, tmp_path):
    bare = without(bert, tmp_path / "bare", "model.safetensors")
    (tmp_path / "config").mkdir()
    shutil.copyfile(bert / "config.json", tmp_path / "config" / "config.json")
    for folder in (bare, tmp_path / "config"):
        plan = make_plan(make_recipe(folder, tmp_path))
        assert plan.problems == ()
        assert any("holds no weights: training needs them" in note for note in plan.notes)
        with pytest.raises(KasatuneError, match=r"holds no model.safetensors"):
            train(make_recipe(folder, tmp_path), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_weights_of_another_kind_are_refused_by_plan_and_train(bert, tmp_path):
    pickled = without(bert, tmp_path / "pickled", "model.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    refused(make_recipe(pickled, tmp_path), tmp_path / "run", "holds no model.safetensors")


def test_a_tokenizer_without_an_end_of_text(llama, tmp_path):
    model = without(llama, tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "eos_token"}))
    refused(instruction(model, tmp_path), tmp_path / "run", "has no EOS token")


def test_an_adapted_output_layer(llama, tmp_path):
    recipe = instruction(llama, tmp_path, method={"target_modules": ["q_proj", "lm_head"]})
    refused(recipe, tmp_path / "run", "the model's output layer is among the targets")


def test_a_chat_template_that_rejects_the_rows(llama, tmp_path):
    model = without(llama, tmp_path / "model")
    (model / "chat_template.jinja").write_text(BROKEN_TEMPLATE)
    refused(instruction(model, tmp_path), tmp_path / "run", "chat template rejects a conversation (no such role)")


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("train", "hub:a/b", "does not name a data set and split"),
        ("validation", "hub:a/b@main:", "does not name a data set and split"),
        ("train", "hub:a/b:train", "data sets of the hub are for instruction"),
    ],
)
def test_names_of_the_hub_are_refused_with_the_recipe(key, name, words):
    task = {"train": "a.csv", "validation": "b.csv", key: name}
    task |= {"name": "classification", "text": "a", "label": "b"} if "are for" in words else {"name": "instruction"}
    with pytest.raises(RecipeError, match=words):
        Recipe.model_validate({"model": {"name": "m"}, "task": task})


def test_validation_rows_of_the_hub_are_not_read_for_a_plan(llama, tmp_path):
    recipe = instruction(llama, tmp_path)
    task = recipe.task.model_copy(update={"validation": "hub:a/b:test"})
    plan = make_plan(recipe.model_copy(update={"task": task}))
    assert plan.problems == ()
    assert any("come from the hub" in note for note in plan.notes)


def test_labels_are_counted_from_the_rows(bert, tmp_path):
    for labels in (2, 3):
        recipe = make_recipe(bert, tmp_path / str(labels), labels=labels)
        assert make_plan(recipe).head_parameters == labels * (32 + 1)
    train(recipe, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["head_parameters"] == 3 * (32 + 1)


def test_an_occupied_output_is_noted(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path).model_copy(update={"output": str(tmp_path)})
    plan = make_plan(recipe)
    assert plan.problems == ()
    assert any("is not empty" in note for note in plan.notes)


def test_the_only_step_of_a_run_has_the_full_rate(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, max_steps=1, warmup_ratio=0.06)
    assert NO_WARMUP in make_plan(recipe).notes
    display = Recorder()
    train(recipe, tmp_path / "run", display=display)
    assert NO_WARMUP in display.messages
    (step,) = [
        event
        for event in map(json.loads, (tmp_path / "run" / "history.jsonl").read_text().splitlines())
        if event["event"] == "train"
    ]
    assert step["learning_rate"] == recipe.training.learning_rate


def test_products_that_overflow_are_a_divergence(bert, tmp_path):
    recipe = make_recipe(bert, tmp_path, train=8, max_steps=1, learning_rate=1e30)
    with pytest.raises(DivergedError, match="products exceed the range of float32"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.json").exists()
