"""Third-party data that tests use where it is present; the project ships none of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_REPOSITORY = Path(__file__).resolve().parents[1]


def shared(path: str) -> Path:
    """The file or folder `data/<path>` of the shared data, or a skipped test where it is absent.

    The shared data is the folder named by KASATUNE_SHARED, or `../shared` beside the repository.
    """
    root = Path(os.environ.get("KASATUNE_SHARED") or _REPOSITORY.parent / "shared")
    found = root / "data" / path
    if not found.exists():
        pytest.skip(f"third-party data is not here: data/{path} in {root} (set KASATUNE_SHARED)")
    return found
