from __future__ import annotations

import json
import sys

import pytest

from kasatune.cli.console import print_json, print_table, results_only


def test_plain_tables_are_aligned_lines(capsys):
    print_table(["name", "score"], [["lora", "0.5"], ["full fine-tuning", "12.25"]], title="scores", numbers=1)
    assert capsys.readouterr().out == (
        "scores\nname              score\nlora                0.5\nfull fine-tuning  12.25\n"
    )


def test_terminals_get_rules_and_no_markup_is_read_from_cells(capsys, monkeypatch):
    monkeypatch.setattr("kasatune.cli.console._on_terminal", lambda: True)
    print_table(["name"], [["[red]x[/red]"]])
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out
    assert "─" in out


def test_json_has_null_for_what_is_no_number(capsys):
    print_json({"a": float("nan"), "b": [float("inf"), 1.5, "é"], 3: (1,)})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": None, "b": [None, 1.5, "é"], "3": [1]}
    assert out.isascii()


def test_what_libraries_print_is_kept_out_of_the_results(capsys):
    with pytest.raises(KeyError), results_only():
        print("chatter")
        raise KeyError
    print("result")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("result\n", "chatter\n")
    assert sys.stdout is not sys.stderr
