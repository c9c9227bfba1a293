from __future__ import annotations

import json

import pytest

from kasatune.errors import InputError
from kasatune.runs.metrics import RunMetrics, is_finished, load_metrics, read_metrics, write_metrics
from tests.reports import sample_runs


def write(run_dir, content):
    (run_dir / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
    return run_dir


def test_metrics_of_the_first_versions_without_schema_version_are_read(tmp_path):
    content = sample_runs.metrics(added_by_a_command={"a": 1})
    assert "schema_version" not in content
    write(tmp_path, content)
    assert load_metrics(tmp_path).schema_version == 1
    assert read_metrics(tmp_path) == content
    assert is_finished(tmp_path)


def test_written_metrics_hold_the_schema_version_and_only_the_entries_given(tmp_path):
    write_metrics(tmp_path, RunMetrics(kind="regression", split="validation", interrupted=True))
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == {
        "schema_version": 1,
        "kind": "regression",
        "split": "validation",
        "interrupted": True,
    }
    assert not is_finished(tmp_path)


def test_a_run_without_metrics_is_not_finished(tmp_path):
    assert not is_finished(tmp_path)
    with pytest.raises(
        InputError, match=r"no metrics\.json: its training was not finished; use `kasatune train --resume`"
    ):
        load_metrics(tmp_path)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", r"metrics\.json is damaged \("),
        ("[1]", r"metrics\.json is not a JSON object"),
        ("{}", r"metrics\.json is damaged \(wrong or missing: kind, split\)"),
        ('{"kind": "ranking", "split": "validation"}', r"\(wrong or missing: kind\)"),
        (
            '{"kind": "regression", "split": "validation", "schema_version": "x"}',
            r"\(wrong or missing: schema_version\)",
        ),
    ],
)
def test_damaged_metrics_are_refused_in_one_line_with_what_to_do(tmp_path, text, fault):
    (tmp_path / "metrics.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=fault) as caught:
        load_metrics(tmp_path)
    assert str(caught.value).endswith("train again")
    assert "\n" not in str(caught.value)


def test_metrics_of_a_later_version_are_refused_with_what_to_do(tmp_path):
    write(tmp_path, {"schema_version": 2, "kind": {"a form": "of its own"}})
    with pytest.raises(InputError, match=r"metrics\.json has schema_version 2, .* reads up to 1; .* upgrade kasatune"):
        load_metrics(tmp_path)
