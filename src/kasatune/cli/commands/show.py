from __future__ import annotations

from kasatune.cli.arguments import RecipeFile
from kasatune.cli.console import say
from kasatune.errors import RecipeError
from kasatune.recipes.catalogue import find_recipe


def command(recipe: RecipeFile) -> None:
    """Print a recipe as it is written, for example to start one of your own from a built-in one.

    Example: kasatune show glue-minilm/rte > my-recipe.yaml
    """
    path = find_recipe(recipe)
    try:
        say(path.read_text(encoding="utf-8").rstrip("\n"))
    except (OSError, UnicodeDecodeError) as error:
        fault = f"cannot be read ({error}); give a YAML file, or choose from `kasatune list recipes`"
        raise RecipeError([fault], recipe) from error
