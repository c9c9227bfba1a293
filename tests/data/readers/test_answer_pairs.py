"""Pairs of answers in every form that is recognized, and the faults of rows."""

import json

import pytest

from kasatune.data.readers.answer_pairs import read_pairs
from kasatune.errors import DataError

USER, SYSTEM = ("user", "a question"), ("system", "be brief")
ASKED = {"role": "user", "content": "a question"}


def said(text):
    return {"role": "assistant", "content": text}


def read(tmp_path, *rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_pairs(path)


FORMS = {
    "text": {"prompt": "a question", "chosen": "good", "rejected": "bad"},
    "messages": {"prompt": [ASKED], "chosen": [said("good")], "rejected": [said("bad")]},
    "one message": {"messages": [ASKED], "chosen": said("good"), "rejected": said("bad")},
    "complete conversations": {"chosen": [ASKED, said("good")], "rejected": [ASKED, said("bad")]},
    "a prompt that the conversations repeat": {
        "prompt": "a question",
        "chosen": [ASKED, said("good")],
        "rejected": [ASKED, said("bad")],
    },
    "Alpaca": {"instruction": "a", "input": "question", "chosen": "good", "rejected": "bad"},
    "question": {"question": "a question", "chosen": "good", "rejected": "bad"},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "a question"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
}


@pytest.mark.parametrize("row", FORMS.values(), ids=list(FORMS))
def test_forms_are_recognized_by_their_columns(tmp_path, row):
    (pair,), notes = read(tmp_path, row)
    question = ("user", "a\n\nquestion") if "input" in row else USER
    assert pair == ((question,), "good", "bad")
    assert len(notes) == 1 and all(column in notes[0] for column in row)


def test_system_and_history_come_before_the_prompt(tmp_path):
    row = {**FORMS["text"], "system": "be brief", "history": [["hello", "hi"]]}
    (pair,), _ = read(tmp_path, row)
    assert pair.prompt == (SYSTEM, ("user", "hello"), ("assistant", "hi"), USER)
    (pair,), _ = read(tmp_path, {**FORMS["complete conversations"], "system": "be brief"})
    assert pair.prompt == (SYSTEM, USER)


def test_other_columns_are_named_and_equal_answers_are_left_out(tmp_path):
    row = {**FORMS["text"], "score_chosen": 9}
    pairs, notes = read(tmp_path, row, {**row, "rejected": "good"})
    assert len(pairs) == 1
    assert "score_chosen is not read" in notes[0]
    assert "1 of 2 rows has equal answers and is left out, first row 2" in notes[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "good", "rejected": "bad"}, "row 1 .*column 'chosen': the row has no prompt"),
        ({**FORMS["text"], "prompt": ""}, "the row has no prompt"),
        ({**FORMS["text"], "prompt": 5}, "column 'prompt': 5 is neither text nor a list"),
        ({**FORMS["text"], "rejected": " "}, "column 'rejected': the answer is missing"),
        ({**FORMS["text"], "rejected": None}, "column 'rejected': the answer is missing"),
        ({**FORMS["text"], "chosen": 1.5}, "column 'chosen': 1.5 is no answer"),
        ({**FORMS["messages"], "chosen": [{"role": "user", "content": "x"}]}, "must take turns"),
        ({**FORMS["messages"], "chosen": [{"role": "robot", "content": "x"}]}, "a role of system, user, assistant"),
        ({**FORMS["messages"], "chosen": ["text"]}, "a role of system, user, assistant"),
        (
            {"chosen": [ASKED, said("a")], "rejected": [{"role": "user", "content": "another"}, said("b")]},
            "column 'rejected': the messages before the answer differ",
        ),
        ({**FORMS["text"], "chosen": [ASKED, said("a")], "prompt": "another"}, "does not begin with the prompt"),
        ({"prompt": "a question", "completion": "good"}, "rows of preferences have chosen, rejected"),
    ],
)
def test_faults_name_the_row(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, row)


def test_all_faults_are_listed(tmp_path):
    with pytest.raises(DataError, match="2 faults"):
        read(tmp_path, {**FORMS["text"], "rejected": ""}, FORMS["text"], {**FORMS["text"], "chosen": 3})
