"""The presets for well-known models: planned on the published configuration of each, and the page of their memory."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from kasatune.recipes.catalogue import built_in, find_recipe
from kasatune.recipes.schema import load_recipe
from kasatune.training.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
_SPEC = importlib.util.spec_from_file_location("write_presets_page", ROOT / "scripts" / "write_presets_page.py")
presets = sys.modules[_SPEC.name] = importlib.util.module_from_spec(_SPEC)  # dataclasses look their module up
_SPEC.loader.exec_module(presets)

# Parameters as the publishers count them, in millions.
PARAMETERS = {
    "akasa/smollm2-135m": 134.5,
    "akasa/smollm2-360m": 361.8,
    "akasa/smollm2-1.7b": 1711.4,
    "akasa/qwen3-0.6b": 596.0,
    "akasa/qwen3-4b": 4022.5,
    "akasa/qwen3-8b": 8190.7,
    "akasa/llama-3.2-1b": 1235.8,
    "akasa/llama-3.2-3b": 3212.7,
    "akasa/gemma-3-1b": 999.9,
    "akasa/gemma-3-4b": 4300.1,
    "akasa/mistral-7b": 7248.0,
}


def test_every_preset_has_a_published_configuration():
    assert {name for name in built_in() if name.startswith("akasa/")} == set(presets.PUBLISHED) == set(PARAMETERS)


@pytest.mark.parametrize("name", presets.PUBLISHED)
def test_a_preset_can_be_planned_and_its_row_of_the_page_is_current(name, tmp_path):
    preset = presets.read_preset(name, tmp_path / "model")
    assert preset.plan.problems == ()
    assert preset.plan.model["parameters"] / 1e6 == pytest.approx(PARAMETERS[name], abs=0.06)
    text = presets.PUBLISHED[name].get("text_config", presets.PUBLISHED[name])
    kinds = {layer.name.rpartition(".")[2] for layer in preset.plan.layers}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(preset.plan.layers) == 7 * text["num_hidden_layers"]
    line = preset.line()
    assert line in (ROOT / "docs" / "presets.md").read_text(encoding="utf-8"), f"stale: run `make presets`: {line}"


@pytest.mark.parametrize("name", presets.PUBLISHED)
def test_the_settings_are_those_of_lora_without_regret(name):
    recipe = load_recipe(find_recipe(name))
    assert (recipe.method.name, recipe.method.alpha) == ("akasa", 32)
    assert 2e-4 <= recipe.training.learning_rate <= 5e-4
    assert recipe.training.batch_size <= 32


def test_the_presets_of_lora_differ_from_those_of_akasa_in_the_method_alone():
    names = {name for name in built_in() if name.startswith("lora/")}
    assert {name.replace("akasa/", "lora/") for name in presets.PUBLISHED} == names
    for name in presets.PUBLISHED:
        output = load_recipe(find_recipe(name)).output.replace("-akasa", "-lora")
        changed = load_recipe(find_recipe(name), ["method.name=lora", f"output={output}"])
        assert load_recipe(find_recipe(name.replace("akasa/", "lora/"))) == changed


def test_a_preset_can_be_planned_on_a_base_in_four_bits(tmp_path):
    presets.read_preset("akasa/qwen3-8b", tmp_path)
    recipe = load_recipe(find_recipe("akasa/qwen3-8b"), [f"model.name={tmp_path}", "model.quantization=nf4"])
    plan = make_plan(recipe)
    assert plan.problems == ()
    assert plan.calibration.source == "generated"
    assert plan.memory_bytes["total"] < 12 * 2**30
