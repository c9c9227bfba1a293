"""The rows of the task instruction, from files and from the hub's tables."""

import json

import pytest

from kasatune.data.tasks import load_evaluation, load_task
from kasatune.errors import DataError
from tests.data.tasks.settings import Settings


def write(path, number, word="row"):
    path.write_text(json.dumps([{"instruction": f"{word} {n}", "output": f"out {n}"} for n in range(number)]))
    return str(path)


def test_files(tmp_path):
    task = Settings(
        "instruction", train=write(tmp_path / "a.json", 5), validation=write(tmp_path / "b.json", 3, "other")
    )
    data = load_task(task)
    assert data.splits["train"].first == [f"row {n}" for n in range(5)]
    assert data.splits["validation"].labels == ["out 0", "out 1", "out 2"]
    assert data.splits["validation"].chats[1] == (("user", "other 1"), ("assistant", "out 1"))


def test_a_share_and_limits(tmp_path):
    task = Settings("instruction", train=write(tmp_path / "a.json", 20), validation=0.2, max_train=10, max_eval=2)
    data = load_task(task)
    assert (len(data.splits["train"].chats), len(data.splits["validation"].chats)) == (10, 2)
    assert "4 of 20 rows" in data.notes[0]
    assert not set(data.splits["train"].first) & set(data.splits["validation"].first)


def test_all_turns_before_the_last_answer_are_the_prompt(tmp_path):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": text} for role, text in turns]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    data = load_evaluation(Settings("instruction"), str(tmp_path / "a.jsonl"), None)
    assert data.splits["validation"].first == ["user: a\n\nassistant: b\n\nuser: c"]
    assert data.splits["validation"].labels == ["d"]


def chat(answer):
    return {"prompt_id": "1", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]}


def test_the_hub(data_hub):
    name = "llama-duo/synth_coding_dataset_dedup"
    splits = {split: [chat(split)] for split in ("train_sft_gpt4o", "test")}
    commit = data_hub.put_splits(name, splits)
    task = Settings("instruction", train=f"hub:{name}:train_sft_gpt4o", validation=f"hub:{name}:test")
    data = load_task(task)
    assert data.splits["train"].labels == ["train_sft_gpt4o"]
    assert data.pins == {"train": f"hub:{name}@{commit}:train_sft_gpt4o", "validation": f"hub:{name}@{commit}:test"}
    assert data.source == ", ".join(data.pins.values())
    with pytest.raises(DataError, match=f"no such split; {name}@{commit} has train_sft_gpt4o, test"):
        load_task(Settings("instruction", train=f"hub:{name}:none", validation=0.1))
    with pytest.raises(DataError, match="hub:NAME:SPLIT"):
        load_task(Settings("instruction", train="hub:name", validation=0.1))


def test_revision_in_the_hub_name_is_read(data_hub):
    first = data_hub.put_splits("a/b", {"train": [chat("first"), chat("more")]})
    second = data_hub.put_splits("a/b", {"train": [chat("second"), chat("more")]})
    for revision, commit, answer in (
        ("", second, "second"),
        (f"@{first}", first, "first"),
        ("@main", second, "second"),
    ):
        data = load_task(Settings("instruction", train=f"hub:a/b{revision}:train", validation=0.5))
        assert data.pins == {"train": f"hub:a/b@{commit}:train"}
        answers = data.splits["train"].labels + data.splits["validation"].labels
        assert sorted(answers) == sorted([answer, "more"])


@pytest.mark.parametrize("settings", [{"validation": 0.1}, {"train": "x.json"}])
def test_missing_settings_are_reported(settings):
    with pytest.raises(DataError, match="missing"):
        load_task(Settings("instruction", **settings))
