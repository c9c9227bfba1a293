"""The commonsense tasks from folders in LLM-Adapters' form."""

from __future__ import annotations

import json

import pytest

from kasatune.data.tasks import load_task
from kasatune.data.tasks.commonsense_prompts import EVALUATION_PROMPT, TRAINING_PROMPT
from kasatune.data.tasks.load import load_evaluation
from kasatune.errors import DataError
from tests.data.tasks.commonsense_toys import OPENBOOKQA, boolq, openbookqa, row, write_commonsense
from tests.data.tasks.settings import Settings
from tests.shared_data import shared


@pytest.fixture
def folder(tmp_path):
    return write_commonsense(tmp_path / "data")


@pytest.mark.parametrize("inner", [False, True])
def test_training_and_evaluation_use_their_own_prompts(folder, inner):
    data = load_task(Settings("commonsense/openbookqa", data=str(folder / "openbookqa" if inner else folder)))
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 18, "validation": 2, "test": 6}
    every = [TRAINING_PROMPT.format(OPENBOOKQA.format(index)) for index in range(20)]
    assert sorted(data.splits["train"].first + data.splits["validation"].first) == sorted(every)
    assert data.splits["test"].first[0] == EVALUATION_PROMPT.format(OPENBOOKQA.format(50))
    assert data.splits["test"].labels[0] == "the correct answer is answer3"
    again = load_task(Settings("commonsense/openbookqa", data=str(folder)))
    assert again.sha256 == data.sha256


def test_mixture_trains_on_all_tasks_and_has_a_split_for_each(folder):
    data = load_task(Settings("commonsense", data=str(folder)))
    assert {name: len(rows) for name, rows in data.splits.items()} == {
        "train": 36,
        "validation": 4,
        "boolq": 6,
        "openbookqa": 6,
    }
    assert any("no commonsense_170k.json" in note for note in data.notes)
    assert any("hellaswag" in note for note in data.notes)
    # a part of the mixture is a mixture
    part = load_task(Settings("commonsense", data=str(folder), max_train=12)).splits["train"].first
    assert 0 < sum("true or false" in prompt for prompt in part) < 12


def test_mixture_file_takes_precedence_over_task_files(folder):
    (folder / "commonsense_170k.json").write_text(json.dumps(openbookqa(5) + boolq(5)), encoding="utf-8")
    data = load_task(Settings("commonsense", data=str(folder)))
    assert len(data.splits["train"]) + len(data.splits["validation"]) == 10


def test_evaluation_reads_another_file(folder):
    data = load_evaluation(Settings("commonsense/boolq"), folder / "boolq", None)
    assert list(data.splits) == ["validation"] and len(data.splits["validation"]) == 6


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "holds no rows"),
        ("{", "not JSON"),
        (json.dumps([{"instruction": "Do."}]), "row 1: no output, answer"),
        (json.dumps([row("Do something.", "true")]), "row 1: the instruction has no 'Answer format"),
        (json.dumps([row(OPENBOOKQA.format(1), "answer5")]), "row 1: the answer 'answer5' is none of"),
        (json.dumps([{**row(OPENBOOKQA.format(1), "answer1"), "input": "more"}]), "row 1: it has an input"),
    ],
)
def test_malformed_file_is_refused_with_its_row(folder, content, words):
    (folder / "openbookqa" / "train.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        load_task(Settings("commonsense/openbookqa", data=str(folder)))


def test_a_missing_file_is_named(folder, tmp_path):
    (folder / "boolq" / "test.json").unlink()
    with pytest.raises(DataError, match=r"no test\.json"):
        load_task(Settings("commonsense/boolq", data=str(folder)))
    with pytest.raises(DataError, match="no such folder"):
        load_task(Settings("commonsense", data=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no commonsense_170k\.json, and no train\.json"):
        load_task(Settings("commonsense", data=str(tmp_path / "empty")))


@pytest.mark.parametrize(("task", "rows"), [("boolq", 3270), ("openbookqa", 500), ("winogrande", 1267)])
def test_the_real_rows_are_read(task, rows):
    data = load_task(Settings(f"commonsense/{task}", data=str(shared("commonsense"))))
    assert len(data.splits["test"]) == rows
    assert len(data.splits["validation"]) == 120
