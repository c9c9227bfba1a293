"""The recipes that come with kasatune."""

from __future__ import annotations

from pathlib import Path

import pytest

import kasatune
from kasatune.errors import RecipeError
from kasatune.recipes.catalogue import about, built_in, find_recipe
from kasatune.recipes.schema import load_recipe

LIBRARY = Path(kasatune.__file__).parent / "recipes" / "library"


def recipes() -> list[Path]:
    return sorted(LIBRARY.rglob("*.yaml"))


def test_every_recipe_file_of_the_library_is_built_in():
    expected = {path.relative_to(LIBRARY).with_suffix("").as_posix() for path in recipes()}
    assert expected == set(built_in())
    assert expected >= {"demo", "glue-minilm/rte", "glue-minilm/cola", "glue-minilm/sst2"}


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_every_built_in_recipe_is_valid_and_has_a_description(path):
    load_recipe(path)
    assert about(path)


def test_the_sst2_recipe_has_the_settings_of_the_published_measurement():
    recipe = load_recipe(find_recipe("glue-minilm/sst2"))
    assert (recipe.task.max_train, recipe.training.epochs, recipe.training.learning_rate) == (4000, 2, 1e-3)
    assert (recipe.method.r, recipe.method.target_modules) == (8, ["query", "value"])


def test_find_recipe_prefers_a_path_to_a_built_in_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo") == built_in()["demo"]
    assert find_recipe("glue-minilm/rte.yaml") == built_in()["glue-minilm/rte"]
    (tmp_path / "demo").touch()
    assert find_recipe("demo") == Path("demo")


def test_an_unknown_name_suggests_the_nearest_one():
    with pytest.raises(RecipeError, match="glue-minilm/cola"):
        find_recipe("glue-minilm/kola")
    with pytest.raises(RecipeError, match="kasatune list recipes"):
        find_recipe("zzz")
