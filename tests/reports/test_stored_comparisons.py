"""The comparisons under docs/results: every stored file is read completely, and its reports are up to date."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from scripts.render_reports import render

from kasatune.experiments.compare.comparison_file import COMPARISON, read_comparison

RESULTS = Path(__file__).parents[2] / "docs" / "results"
STORED = sorted(path.parent for path in RESULTS.glob(f"*/{COMPARISON}"))
REPORTS = ("comparison.md", "comparison.csv", "comparison.tex", "report.html")


def lost(stored: Any, read: Any, place: str = "") -> list[str]:
    """The places of all keys and values of `stored` that differ or are missing in `read`."""
    if isinstance(stored, dict):
        if not isinstance(read, dict):
            return [place]
        return [
            entry
            for key, value in stored.items()
            for entry in (lost(value, read[key], f"{place}.{key}") if key in read else [f"{place}.{key}"])
        ]
    if isinstance(stored, list):
        if not isinstance(read, list) or len(stored) != len(read):
            return [place]
        return [
            entry
            for number, (value, other) in enumerate(zip(stored, read, strict=True))
            for entry in lost(value, other, f"{place}[{number}]")
        ]
    return [] if stored == read else [place]


def test_lost_keys_and_changed_values_are_found():
    assert lost({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 3}], "d": 4}) == [".a[0].b", ".a[0].c"]


def test_there_are_stored_comparisons():
    assert STORED


@pytest.mark.parametrize("directory", STORED, ids=lambda directory: directory.name)
def test_no_key_of_a_stored_comparison_is_lost(directory):
    stored = json.loads((directory / COMPARISON).read_text(encoding="utf-8"))
    assert lost(stored, read_comparison(directory)) == []


@pytest.mark.parametrize("directory", STORED, ids=lambda directory: directory.name)
def test_the_reports_of_a_stored_comparison_are_those_of_this_version(directory, tmp_path):
    """If this fails after a change of wording or layout, run `make reports`."""
    shutil.copy(directory / COMPARISON, tmp_path)
    render(tmp_path)
    for name in (COMPARISON, *REPORTS):
        assert (tmp_path / name).read_text(encoding="utf-8") == (directory / name).read_text(encoding="utf-8"), name
