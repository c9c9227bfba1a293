"""Check that the packages of the extra `train` (recipes, runs, the command line) are installed and recent enough."""

from __future__ import annotations

import importlib.metadata
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

# Packages of the core that `kasatune[train]` needs in a higher version than the tuner does, as in pyproject.toml.
TRAIN_VERSIONS = {"accelerate": "1.15", "peft": "0.21.2", "transformers": "5.20"}


def require_train_extra(feature: str) -> None:
    """Refuse a feature of the extra `train` in one line where a package of it is missing or too old.

    Args:
        feature: the subject of the message, such as "the command line".

    Raises:
        MissingExtraError: it names the missing modules, the versions that are too low, and the line that installs them.
    """
    missing = [name for name in TRAIN_MODULES if find_spec(name) is None]
    outdated: list[tuple[str, str, str]] = []
    for name, lowest in TRAIN_VERSIONS.items():
        version = importlib.metadata.version(name)
        if _numbers(version) < _numbers(lowest):
            outdated.append((name, version, lowest))
    if missing or outdated:
        raise MissingExtraError(feature, "train", missing, outdated)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (5, 20, 0) of "5.20.0.dev0"."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)
