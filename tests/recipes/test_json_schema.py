"""The JSON schema of recipes: complete, and in agreement with the recipes that are accepted and refused."""

from __future__ import annotations

import pytest
import yaml

from kasatune.recipes.catalogue import built_in
from kasatune.recipes.schema import SECTIONS, recipe_json_schema
from kasatune.recipes.yaml_io import parse_yaml

jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def validator():
    schema = recipe_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_has_a_description(section):
    undescribed = [key for key, field in SECTIONS[section].model_fields.items() if not field.description]
    assert undescribed == []
    (definition,) = [d for d in recipe_json_schema()["$defs"].values() if d["title"] == SECTIONS[section].__name__]
    for key, schema in definition["properties"].items():
        required = key in definition.get("required", ())
        assert schema["description"] and (required or "default" in schema), key


@pytest.mark.parametrize("name", built_in())
def test_every_built_in_recipe_satisfies_the_schema(validator, name):
    validator.validate(parse_yaml(built_in()[name].read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "fault",
    [
        "method: {nam: kasa}",
        "method: {name: kasaa}",
        "method: {r: 0}",
        "method: {name: kasa, options: {sigma: two}}",
        "method: {name: lora, options: {ratio: 2}}",
        "method: {name: lora-plus, options: {ratio: 0.5}}",
        "training: {learning_rate: fast}",
        "training: {schedule: liner}",
        "seed: 3",
    ],
)
def test_the_schema_refuses(validator, fault):
    recipe = {"model": {"name": "m"}, "task": {"name": "glue/rte"}}
    assert validator.is_valid(recipe)
    assert not validator.is_valid({**recipe, **yaml.safe_load(fault)})


@pytest.mark.parametrize("options", ["{name: lora-plus, options: {ratio: 2}}", "{name: linear-probe}"])
def test_the_schema_knows_options_and_aliases(validator, options):
    assert validator.is_valid({"model": {"name": "m"}, "task": {"name": "e2e"}, "method": yaml.safe_load(options)})
