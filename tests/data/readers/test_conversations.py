"""Reading conversations in every form, and each fault of a row."""

import json

import pytest

from kasatune.data.readers.conversations import Unlearnt, read_chats
from kasatune.errors import DataError
from tests.shared_data import shared


def rows_in(path):
    return read_chats(path)[0]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) if path.suffix == ".jsonl" else json.dumps(rows))
    return path


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_alpaca_rows(tmp_path, ending):
    rows = [{"instruction": "Add", "input": "1 1", "output": "2"}, {"instruction": "Sing", "input": "", "output": "La"}]
    assert rows_in(write(tmp_path / f"x.{ending}", rows)) == [
        (("user", "Add\n\n1 1"), ("assistant", "2")),
        (("user", "Sing"), ("assistant", "La")),
    ]


def test_alpaca_rows_need_no_input_and_may_be_a_table(tmp_path):
    assert rows_in(write(tmp_path / "x.json", [{"instruction": "A", "output": "B"}])) == [
        (("user", "A"), ("assistant", "B"))
    ]
    (tmp_path / "x.csv").write_text("output,instruction,other\nB,A,C\n")
    assert rows_in(tmp_path / "x.csv") == [(("user", "A"), ("assistant", "B"))]
    (tmp_path / "x.tsv").write_text("input\toutput\tinstruction\n\tB\tA\n")
    assert rows_in(tmp_path / "x.tsv") == [(("user", "A"), ("assistant", "B"))]


def test_messages(tmp_path):
    system = {"role": "system", "content": "Be brief"}
    rows = [{"messages": CHAT, "instruction": "not read"}, {"messages": [system, *CHAT, *CHAT]}]
    read = rows_in(write(tmp_path / "x.jsonl", rows))
    assert read[0] == (("user", "Hi"), ("assistant", "Hello"))
    assert [role for role, _ in read[1]] == ["system", "user", "assistant", "user", "assistant"]


def test_messages_in_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"messages": [CHAT], "id": [1]}), tmp_path / "x.parquet")
    assert rows_in(tmp_path / "x.parquet") == [(("user", "Hi"), ("assistant", "Hello"))]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": []}, "a list is expected"),
        ({"messages": "Hi"}, "a list is expected"),
        ({"messages": CHAT[:1]}, "the last message must be the assistant's"),
        ({"messages": CHAT[::-1]}, "take turns"),
        ({"messages": [*CHAT, *CHAT[:1]]}, "take turns"),
        ({"messages": [{"role": "system", "content": "x"}]}, "take turns"),
        ({"messages": [{"role": "tool", "content": "x"}, *CHAT]}, "message 1"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": " "}]}, "message 2"),
        ({"messages": ["Hi", "Hello"]}, "message 1"),
        ({"instruction": "", "output": "B"}, "column 'instruction': the text is missing"),
        ({"instruction": "A", "output": None}, "column 'output': the text is missing"),
        ({"instruction": "A", "output": 3}, "3 is not text"),
        ({"instruction": "A", "input": 3, "output": "B"}, "3 is not text"),
        ({"question": "A", "answer": "B"}, "the columns are 'question', 'answer'"),
    ],
)
def test_faults_name_their_place(tmp_path, row, fault):
    with pytest.raises(DataError, match=fault):
        rows_in(write(tmp_path / "x.jsonl", [row]))


def test_all_faults_are_listed(tmp_path):
    rows = [{"messages": CHAT}, {"messages": []}, {"messages": CHAT}, {"messages": CHAT[:1]}]
    with pytest.raises(DataError, match=r"2 faults[\s\S]*row 2 \(line 2\)[\s\S]*row 4 \(line 4\)"):
        rows_in(write(tmp_path / "x.jsonl", rows))


@pytest.mark.parametrize(("name", "text"), [("x.json", "[]"), ("x.csv", "instruction,output\n"), ("x.jsonl", "\n")])
def test_no_rows(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError):
        rows_in(tmp_path / name)


SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
TURN = (("user", "Hi"), ("assistant", "Hello"))


@pytest.mark.parametrize(
    ("row", "chat"),
    [
        ({"conversations": SHAREGPT}, TURN),
        ({"conversations": SHAREGPT, "system": "Be brief"}, (("system", "Be brief"), *TURN)),
        ({"conversations": [{"from": "system", "value": "x"}, *SHAREGPT], "system": ""}, (("system", "x"), *TURN)),
        ({"messages": [{**CHAT[0], "weight": 1}, CHAT[1]], "tools": "[]"}, TURN),
        ({"messages": CHAT, "system": "Be brief"}, (("system", "Be brief"), *TURN)),
        ({"prompt": "Hi", "completion": "Hello"}, TURN),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, TURN),
        (
            {"instruction": "Add", "input": "1", "output": "2", "system": "s", "history": [["Hi", "Hello"]]},
            (("system", "s"), *TURN, ("user", "Add\n\n1"), ("assistant", "2")),
        ),
    ],
)
def test_forms_are_recognized_by_their_columns(tmp_path, row, chat):
    chats, notes = read_chats(write(tmp_path / "x.jsonl", [{**row, "id": 3}]))
    assert chats == [chat]
    assert notes == [f"{tmp_path / 'x.jsonl'}: conversations are read from {', '.join(row)}; id is not read"]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": [CHAT[0], {**CHAT[1], "weight": 0.5}]}, "message 2: weight 0.5 received; must be 0"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": -1}]}, "message 2: weight -1 received; must be 0"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": True}]}, "message 2: weight True received; must be 0"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": "0"}]}, "message 2: weight '0' received; must be 0"),
        ({"messages": [{**CHAT[0], "weight": 0}, CHAT[1]]}, "message 1: weight 0 of a message of"),
        ({"messages": [CHAT[0], {**CHAT[1], "weight": 0}]}, "every answer has the weight 0, so there is nothing"),
        ({"messages": [CHAT[0], {**CHAT[1], "tool_calls": [1]}]}, "message 2: tool_calls cannot be trained on"),
        ({"messages": CHAT, "weight": 0.5}, "0.5; rows cannot be weighted"),
        ({"messages": CHAT, "tools": "[1]"}, "tools cannot be trained on"),
        ({"messages": CHAT, "history": [["a", "b"]]}, "put the earlier messages into messages"),
        ({"conversations": [{"from": "system", "value": "x"}, *SHAREGPT], "system": "y"}, "take turns"),
        ({"instruction": "A", "output": "B", "history": [["a"]]}, "pairs are needed"),
        ({"instruction": "A", "output": "B", "system": 3}, "3 is not text"),
        ({"conversations": [{"from": "tool", "value": "x"}, *SHAREGPT]}, "message 1"),
    ],
)
def test_what_cannot_be_heeded_is_refused(tmp_path, row, fault):
    with pytest.raises(DataError, match=fault):
        rows_in(write(tmp_path / "x.jsonl", [row]))


def test_stanford_alpaca():
    chats, (note,) = read_chats(shared("instruct/alpaca_6000.json"))
    assert len(chats) == 5997 and {len(chat) for chat in chats} == {2}
    assert note.endswith("3 of 6,000 rows have an empty output and are left out, first row 3210")


def test_an_unknown_key_of_a_message_is_refused_by_name(tmp_path):
    answer = {"role": "assistant", "content": "b"}
    rows = [{"messages": [{"role": "user", "content": "a", "name": None}, answer]}]
    assert len(rows_in(write(tmp_path / "good.json", rows))) == 1
    rows = [{"messages": [{"role": "user", "content": "a", "name": "Ann"}, answer | {"train": False}]}]
    with pytest.raises(DataError, match=r"row 1.*message 1: 'name': no such key"):
        read_chats(write(tmp_path / "bad.json", rows))


def test_a_column_that_only_later_rows_have_is_read_too(tmp_path):
    plain = {"instruction": "a", "output": "b"}
    path = write(tmp_path / "rows.jsonl", [plain, plain | {"history": [["c", "d"]], "system": "s"}])
    assert rows_in(path) == [
        (("user", "a"), ("assistant", "b")),
        (("system", "s"), ("user", "c"), ("assistant", "d"), ("user", "a"), ("assistant", "b")),
    ]


def test_answers_of_weight_0_are_marked_and_counted(tmp_path):
    later = [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "Then", "weight": 1}]
    rows = [{"messages": [CHAT[0], {**CHAT[1], "weight": weight}, *later]} for weight in (0, 0.0, 1, None)]
    path = write(tmp_path / "x.json", rows)
    chats, notes = read_chats(path)
    marked = [[isinstance(text, Unlearnt) for _, text in chat] for chat in chats]
    assert marked == [[False, True, False, False]] * 2 + [[False] * 4] * 2
    assert len(set(chats)) == 1
    assert notes[-1] == f"{path}: 2 answers have the weight 0 and are not learnt"
