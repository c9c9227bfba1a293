"""The recipe key method.calibration: a mapping, its source alone, overrides of its keys, and wrong values."""

from __future__ import annotations

import pytest

from kasatune.errors import RecipeError
from kasatune.recipes.origins import annotated_yaml, recipe_values
from kasatune.recipes.schema import Recipe, load_recipe, recipe_json_schema, to_yaml
from kasatune.recipes.yaml_io import parse_yaml

PLAIN = "model: {name: m}\ntask: {name: e2e}\nmethod: {name: akasa"


def recipe(tmp_path, method="", overrides=()):
    path = tmp_path / "recipe.yaml"
    path.write_text(PLAIN + method + "}\n")
    return load_recipe(path, overrides)


@pytest.mark.parametrize("written", [", calibration: task", ", calibration: {source: task}"])
def test_the_source_alone_is_a_mapping_with_the_default_rows(tmp_path, written):
    loaded = recipe(tmp_path, written)
    assert loaded.model_dump()["method"]["calibration"] == {"source": "task", "rows": 64}
    assert Recipe.model_validate(parse_yaml(to_yaml(loaded))) == loaded


def test_it_is_left_out_at_its_default(tmp_path):
    assert "calibration" not in recipe(tmp_path).model_dump()["method"]
    assert "calibration" not in recipe(tmp_path, ", calibration: auto").model_dump()["method"]


@pytest.mark.parametrize("written", ["", ", calibration: task", ", calibration: {source: task}"])
def test_overrides_name_its_keys(tmp_path, written):
    loaded = recipe(tmp_path, written, ["method.calibration.rows=12", "method.calibration.source=task"])
    assert loaded.method.calibration.model_dump() == {"source": "task", "rows": 12}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{source: books}", r'method.calibration: {"source": "books"} received; must be \'auto\''),
        ("{rows: 0}", "must be at least 1"),
        ("{row: 3}", r'method.calibration: "row" is not a key of it'),
        ("3", "method.calibration: 3 received; must be a section"),
        ("books", "method.calibration"),
    ],
)
def test_wrong_values_are_refused(tmp_path, written, message):
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, f", calibration: {written}")


def test_it_is_shown_with_its_origin_and_described_for_editors(tmp_path):
    recipe(tmp_path, ", calibration: task")
    shown = annotated_yaml(recipe_values(tmp_path / "recipe.yaml"))
    assert "calibration: {source: task, rows: 64}" in shown
    assert recipe_json_schema()["$defs"]["CalibrationSection"]["properties"]["rows"]["minimum"] == 1
