"""Check that the packages of the extra `train` (recipes, runs, the command line) are installed."""

from __future__ import annotations

from importlib.util import find_spec

from kasatune.errors import MissingExtraError

# The modules of the packages that `kasatune[train]` adds to the core, in pyproject.toml.
TRAIN_MODULES = (
    "datasets",
    "huggingface_hub",
    "jinja2",
    "markupsafe",
    "pyarrow",
    "pydantic",
    "rich",
    "sacrebleu",
    "sklearn",
    "typer",
    "yaml",
)


def require_train_extra(feature: str) -> None:
    """Refuse a feature of the extra `train` in one line where a package of it is missing.

    Args:
        feature: the subject of the message, such as "the command line".

    Raises:
        MissingExtraError: it names the missing modules and the line that installs them.
    """
    missing = [name for name in TRAIN_MODULES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(feature, "train", missing)
