"""Entry point of the command `kasatune` and of `python -m kasatune`: checks that `kasatune[train]` is installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

# The modules of the packages that the extra `train` adds to the core, in pyproject.toml.
_TRAIN = (
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


def run() -> int:
    """Run the command line and return its exit status; 2 with one line of explanation where a package is missing."""
    missing = [name for name in _TRAIN if find_spec(name) is None]
    if missing:
        print(
            f"error: the command line is not installed ({', '.join(missing)} missing): pip install 'kasatune[train]'",
            file=sys.stderr,
        )
        return 2
    from kasatune.cli.main import run as run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(run())
