from __future__ import annotations

import json

import pytest

from kasatune.recipes.catalogue import built_in
from kasatune.recipes.schema import SECTIONS, load_recipe


def test_a_built_in_recipe_is_printed_as_it_is_written(kasatune):
    done = kasatune("show", "glue-minilm/rte", "--as-written")
    assert (done.status, done.err) == (0, "")
    assert done.out == built_in()["glue-minilm/rte"].read_text(encoding="utf-8")


def origins(kasatune, *arguments):
    return {
        line["place"]: (line["value"], line["origin"])
        for line in json.loads(kasatune("show", *arguments, "--json").out)
    }


def test_every_key_is_shown_with_where_its_value_comes_from(kasatune, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {name: m}\ntask: {name: e2e, data: d}\nmethod: {name: lora-plus, r: 4}\n"
        "training: {schedule: constant}\ngeneration: {num_beams: 2}\n"
    )
    shown = origins(kasatune, str(path), "method.r=8", "training.seed=3", "method.options.ratio=4")
    keys = {f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields}
    keys = {key for key in keys if not key.startswith("preference.")}  # of another task
    assert set(shown) == {*keys, "output"}
    assert shown["model.name"] == ("m", "recipe")
    assert shown["method.r"] == (8, "override")
    assert shown["method.options"] == ({"ratio": 4.0}, "override")
    assert shown["training.seed"] == (3, "override")
    assert shown["training.epochs"] == (3, "default")
    assert shown["training.warmup_ratio"] == (0.0, "training.schedule")
    assert shown["generation.num_beams"] == (2, "recipe")
    assert shown["generation.length_penalty"] == (0.8, "default of the task e2e")
    assert shown["task.loss_on"] == ("completion", "default of the task e2e")
    assert shown["output"] == ("runs/e2e-lora-plus", "task and method")


@pytest.mark.parametrize("name", built_in())
def test_what_is_shown_is_the_same_recipe(kasatune, tmp_path, name):
    path = tmp_path / "shown.yaml"
    path.write_text(kasatune("show", name).out)
    assert load_recipe(path) == load_recipe(built_in()[name])


def test_a_recipe_with_faults_is_not_shown(kasatune, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {name: m}\ntask: {name: e2e}\nlora_rank: 3\n")
    done = kasatune("show", str(path))
    assert (done.status, done.out) == (2, "")
    assert "write method.r" in done.err


def test_a_name_that_does_not_exist_gets_a_suggestion(kasatune):
    done = kasatune("show", "glue-minilm/rtee")
    assert done.status == 2
    assert "glue-minilm/rte" in done.err


def test_a_file_that_is_not_text_is_refused(kasatune, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe")
    for name in (path, tmp_path):
        done = kasatune("show", str(name))
        assert done.status == 2
        assert "is not UTF-8" in done.err or "this is a folder" in done.err
        assert kasatune("show", str(name), "--as-written").status == 2
