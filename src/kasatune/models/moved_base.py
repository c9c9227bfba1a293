"""The base model of a run at another place than its recipe names: the option `--base MODEL`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from kasatune.errors import InputError, ModelError
from kasatune.models.load import Base
from kasatune.recipes.schema import Recipe
from kasatune.runs.metrics import read_metrics

_SHOWN_DIGITS = 12
_REMEDY = ", or name the base with --base MODEL"


def with_base(recipe: Recipe, base: str | None) -> Recipe:
    """`recipe` with its base model read from `base`; unchanged if that is None.

    Args:
        recipe: recipe of a run.
        base: see `find_model`; the revision in the recipe does not apply to it.
    """
    if base is None:
        return recipe
    return recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"name": base, "gguf_file": None, "revision": None})}
    )


@contextmanager
def base_errors(base: str | None, named_by: str = "model.name", remedy: str = _REMEDY) -> Generator[None]:
    """Make errors about a base model name the place that named it, and `--base` as a remedy.

    Args:
        base: the model that --base named; None if it was not given.
        named_by: what named the model otherwise, such as "the adapter's base_model_name_or_path".
        remedy: appended to a message that does not mention --base.
    """
    try:
        yield
    except ModelError as fault:
        message = str(fault).replace("model.name:", f"{'--base' if base is not None else named_by}:", 1)
        if "--base" not in message:
            message += remedy
        raise ModelError(message) from fault


def require_same_base(base: Base, recipe: Recipe, recorded: str | None, name: str) -> None:
    """Refuse another base model than a run was trained on.

    A quantized base is not compared: its numbers depend on the device. Adapters record samples of their base's weights
    besides, which are compared when they are loaded.

    Args:
        base: the loaded base.
        recipe: recipe of the run.
        recorded: fingerprint of the base that the run was trained on; None if it is not known.
        name: name of `base`, for the message.

    Raises:
        ModelError: it is another model.
    """
    if recorded and recipe.model.quantization == "none" and base.fingerprint != recorded:
        raise ModelError(
            f"--base: {name} is another model than {recipe.model.base_name}, on which the run was trained: the "
            f"fingerprint of its weights is {base.fingerprint[:_SHOWN_DIGITS]}, recorded is "
            f"{recorded[:_SHOWN_DIGITS]}; name a copy of that model"
        )


def recorded_fingerprint(run_dir: Path) -> str | None:
    """The fingerprint of the base model in a run's metrics.json; None if there is none."""
    try:
        model = read_metrics(run_dir).get("model")
    except InputError:
        return None
    fingerprint = model.get("fingerprint") if isinstance(model, dict) else None
    return fingerprint if isinstance(fingerprint, str) else None
