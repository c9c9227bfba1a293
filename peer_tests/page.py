"""Write the table of PEFT's test suite from the records of its runs."""

from __future__ import annotations

from pathlib import Path


def write_page(records: Path, page: Path, version: str) -> int:
    """Write the page; return 1 if a test failed without being a documented refusal, and 0 otherwise."""
    return 0
