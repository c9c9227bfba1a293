"""Inputs and outputs of the command predict in files: standard input, tables, CSV and JSON Lines."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from kasatune.cli.prediction_files import (
    check_predictions_file,
    is_table,
    read_lines_of,
    read_table_inputs,
    write_predictions,
)
from kasatune.errors import InputError


def test_standard_input_is_read_line_by_line(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\r\ntwo, three\n"))
    assert read_lines_of(Path("-")) == ["one", "two, three"]
    with pytest.raises(InputError, match="standard input holds no text"):
        read_lines_of(Path("-"))


def test_rows_of_tables_are_texts_or_pairs(tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text('a,b\n"x, y",z\n"line\nbreak",w\n')
    assert is_table(table)
    assert read_table_inputs(table, ["a"]) == ["x, y", "line\nbreak"]
    assert read_table_inputs(table, ["a", "b"]) == [["x, y", "z"], ["line\nbreak", "w"]]
    with pytest.raises(InputError, match="--column; the file has a, b"):
        read_table_inputs(table, [])
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"a": "x"}\n{"a": 3}\n')
    with pytest.raises(InputError, match="row 2: a is 3; it must be text"):
        read_table_inputs(rows, ["a"])


def test_predictions_are_written_as_csv_and_json_lines(tmp_path):
    items = [
        {"input": 'say "x", y', "prediction": {"label": "no", "scores": {"no": 0.75, "yes": 0.25}}},
        {"input": "é\nz", "prediction": {"label": "yes", "scores": {"no": 0.5, "yes": 0.5}}, "truncated": True},
    ]
    write_predictions(tmp_path / "out.csv", items)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"input": 'say "x", y', "prediction": "no", "probability": "0.75"}
    assert rows[1]["input"] == "é\nz"
    write_predictions(tmp_path / "out.jsonl", items)
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == items
    write_predictions(tmp_path / "pairs.csv", [{"input": ["a", "b"], "prediction": 0.5}])
    assert (tmp_path / "pairs.csv").read_text() == "input_1,input_2,prediction\na,b,0.5\n"
    write_predictions(tmp_path / "texts.csv", [{"input": "a", "prediction": {"text": "b"}}])
    assert (tmp_path / "texts.csv").read_text() == "input,prediction\na,b\n"


@pytest.mark.parametrize(("name", "words"), [("out.txt", "must end in"), ("nowhere/out.csv", "does not exist")])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, name, words):
    with pytest.raises(InputError, match=words):
        check_predictions_file(tmp_path / name)
