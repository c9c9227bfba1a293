"""reproduction.json: the model, files of earlier versions, and the page."""

from __future__ import annotations

import json

import pytest

from kasatune.errors import InputError
from kasatune.experiments.reproduce.reproduction_file import (
    PAGE,
    REPRODUCTION,
    SCHEMA_VERSION,
    checked,
    read_reproduction,
    write_reproduction,
)
from kasatune.reports.reproduction import markdown


def first_version() -> dict:
    """A file without schema_version and date, as the first version wrote it."""
    figure = {"task": "glue/cola", "metric": "matthews_correlation", "method": "kasa", "minus": None, "paper": None}
    figure |= {"decimals": 1, "source": "the authors' log", "verdict": "not comparable", "reasons": ["fewer epochs"]}
    figure["log"] = {"best": 65.82, "epoch": 43, "last": None, "last_ten": 62.57}
    figure["ours"] = {"score": 12.5, "interval": [10.0, 15.0], "seeds": [12.5], "epochs": [3.0], "last": 12.0}
    figure["ours"] |= {"last_ten": None, "runs": ["out/runs/cola-kasa-seed0"]}
    return {
        "format": 1,
        "experiment": "glue",
        "title": "GLUE",
        "command": "kasatune reproduce glue --quick",
        "quick": True,
        "model": "roberta-base",
        "model_title": "RoBERTa base",
        "base": ["tiny"],
        "seeds": [0],
        "methods": ["kasa"],
        "published": "best epochs",
        "unknown": [],
        "rule": "reproduced: ...",
        "settings": "published",
        "differences": ["training.epochs: 3 (published: 100)"],
        "judged": [],
        "figures": [figure, {**figure, "task": "average", "log": None, "ours": None, "verdict": "not run"}],
        "failed": False,
        "machine": {"processor": "a processor"},
        "versions": {"torch": "2.13.0"},
    }


def test_a_file_of_the_first_version_renders_and_keeps_its_keys(tmp_path):
    old = first_version()
    (tmp_path / REPRODUCTION).write_text(json.dumps(old), encoding="utf-8")
    content = read_reproduction(tmp_path)
    assert {key: content[key] for key in old} == old
    page = markdown(content)
    assert "65.82 at 43" in page and "10.00 to 15.00" in page
    assert "\na processor; torch 2.13.0." in page  # without a date


def test_a_new_file_has_the_schema_version_and_is_read_as_written(tmp_path):
    content = checked({**first_version(), "date": "2026-01-02", "added_later": 1})
    assert content["schema_version"] == SCHEMA_VERSION and content["added_later"] == 1
    write_reproduction(content, tmp_path)
    assert read_reproduction(tmp_path) == content
    assert "\n2026-01-02, a processor" in (tmp_path / PAGE).read_text(encoding="utf-8")


def test_damaged_and_newer_files_are_refused(tmp_path):
    path = tmp_path / REPRODUCTION
    with pytest.raises(InputError, match="cannot be read"):
        read_reproduction(tmp_path)
    damaged = first_version()
    damaged["figures"][0]["verdict"] = "perfect"
    path.write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(InputError, match=r"damaged at figures\.0\.verdict"):
        read_reproduction(tmp_path)
    path.write_text(json.dumps({**first_version(), "schema_version": SCHEMA_VERSION + 1}), encoding="utf-8")
    with pytest.raises(InputError, match="update kasatune"):
        read_reproduction(tmp_path)
