from __future__ import annotations

from typing import Annotated

import typer

from kasatune.cli.arguments import Json, Overrides, RecipeFile
from kasatune.cli.console import print_json, say
from kasatune.errors import RecipeError
from kasatune.recipes.catalogue import find_recipe


def command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    as_written: Annotated[
        bool, typer.Option("--as-written", help="Print the file unchanged, with its own comments.")
    ] = False,
    json: Json = False,
) -> None:
    """Print the complete recipe with every default, and where each value comes from.

    Example: kasatune show glue-minilm/rte method.r=16 > my-recipe.yaml
    """
    path = find_recipe(recipe)
    if as_written:
        if overrides or json:
            raise RecipeError(["--as-written prints the file alone; leave out overrides and --json"], recipe)
        try:
            say(path.read_text(encoding="utf-8").rstrip("\n"))
        except (OSError, UnicodeDecodeError) as error:
            fault = f"cannot be read ({error}); give a YAML file, or choose from `kasatune list recipes`"
            raise RecipeError([fault], recipe) from error
        return
    from kasatune.recipes.origins import annotated_yaml, recipe_values

    values = recipe_values(path, overrides or ())
    if json:
        print_json([value._asdict() for value in values])
    else:
        say(annotated_yaml(values).rstrip("\n"))
