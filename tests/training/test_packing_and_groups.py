"""Runs with packed rows, or with rows of similar length in a batch: the same losses, and resumed like others."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import BloomConfig, BloomForCausalLM

from kasatune.errors import RecipeError
from kasatune.experiments.compare.run_id import plan_run
from kasatune.training.train import train
from tests.text_toys import make_text_recipe, save_tokenizer
from tests.toys import At, make_recipe
from tests.training.test_resume import ctrl_c


def train_events(run):
    events = [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event for event in events if event["event"] == "train"]


def adapter(run):
    return load_file(next((run / "kasa").glob("*.safetensors")))


def test_packed_prompts_and_completions_take_the_step_of_the_rows_alone(llama, tmp_path):
    apart = make_text_recipe(llama, tmp_path / "d", max_steps=1, batch_size=24, warmup_ratio=0.0)
    packed = make_text_recipe(llama, tmp_path / "d", max_steps=1, batch_size=24, warmup_ratio=0.0, packing=True)
    runs = [train(recipe, tmp_path / name) for name, recipe in (("apart", apart), ("packed", packed))]
    one, other = (train_events(run)[0]["loss"] for run in runs)
    assert one == pytest.approx(other, abs=1e-5)
    a, b = map(adapter, runs)
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)
    assert plan_run(apart, "0", search=False).id != plan_run(packed, "0", search=False).id


def test_an_epoch_of_packed_rows_has_fewer_steps(llama, tmp_path):
    run = train(make_text_recipe(llama, tmp_path / "d", batch_size=2, packing=True), tmp_path / "run")
    assert 3 <= len(train_events(run)) <= 8


def test_a_model_that_cannot_be_packed_is_refused_and_nothing_is_written(tmp_path):
    save_tokenizer(tmp_path / "bloom")
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=16, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.5)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    recipe = make_text_recipe(tmp_path / "bloom", tmp_path / "d", method={"name": "lora"}, packing=True)
    with pytest.raises(RecipeError, match=r"training\.packing: true received; BloomForCausalLM"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_with_length_groups_is_resumed_in_the_middle_of_an_epoch(llama, tmp_path):
    def recipe(**training):
        return make_text_recipe(llama, tmp_path / "d", batch_size=4, epochs=2, **training)

    grouped = train(recipe(group_by_length=True), tmp_path / "grouped")
    with pytest.raises(KeyboardInterrupt):
        train(recipe(group_by_length=True, save_steps=1), tmp_path / "run", display=At(8, ctrl_c))
    train(recipe(group_by_length=True, save_steps=1), tmp_path / "run", resume=True)
    assert [event["loss"] for event in train_events(tmp_path / "run")] == [
        event["loss"] for event in train_events(grouped)
    ]
    assert len(train_events(grouped)) == 12
    a, b = adapter(grouped), adapter(tmp_path / "run")
    assert all(torch.equal(a[name], b[name]) for name in a)
    plain = train(recipe(), tmp_path / "plain")
    assert [event["loss"] for event in train_events(plain)] != [event["loss"] for event in train_events(grouped)]


def test_a_key_at_its_default_is_not_written_and_groups_work_for_labelled_rows(bert, tmp_path):
    assert "group_by_length" not in make_recipe(bert, tmp_path / "d").model_dump()["training"]
    recipe = make_recipe(bert, tmp_path / "d", max_steps=1, group_by_length=True)
    assert recipe.model_dump()["training"]["group_by_length"] is True
    train(recipe, tmp_path / "run")
