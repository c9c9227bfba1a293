"""The command chat: prompts as in training, history, the base beside, sampling, and input without a terminal."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from kasatune.cli.columns import side_by_side
from tests.text_toys import make_llama

RECIPE = """
model: {name: model}
task: {name: instruction, train: train.jsonl, validation: valid.jsonl, max_length: 40}
method: {r: 2, alpha: 16, target_modules: [q_proj, down_proj]}
training: {epochs: 2, batch_size: 4, eval_batch_size: 2, device: cpu, learning_rate: 0.05}
generation: {max_new_tokens: 5}
output: out
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from kasatune.cli.main import run

    folder = tmp_path_factory.mktemp("chat")
    make_llama(folder / "model")
    rows = [{"instruction": f"say {word} :", "input": "", "output": "two three"} for word in ("red", "blue", "one")]
    for name, part in (("train", rows * 4), ("valid", rows[:2])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (folder / "recipe.yaml").write_text(RECIPE)
    before = os.getcwd()  # noqa: PTH109 - chdir needs a string
    os.chdir(folder)
    try:
        assert run(["train", "recipe.yaml"]) == 0
        assert run(["train", "recipe.yaml", "method.name=full", "output=full"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def work(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def typed(monkeypatch):
    """Lines of standard input, which is no terminal."""

    def typed(*lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))

    return typed


def predicted(kasatune, run, text):
    (item,) = json.loads(kasatune("predict", run, "--text", text, "--json").out)
    return item["prediction"]["text"]


@pytest.mark.parametrize("run", ["out", "full"])
def test_one_answer_is_that_of_predict(work, kasatune, run):
    done = kasatune("chat", run, "--once", "say blue :")
    assert (done.status, done.out) == (0, predicted(kasatune, run, "say blue :") + "\n")


def test_the_adapter_of_a_run_answers_as_the_run_does(work, kasatune):
    expected = kasatune("chat", "out", "--once", "say blue :").out
    assert kasatune("chat", "out/adapter", "--once", "say blue :").out == expected
    assert kasatune("export", "out", "--to", "lora", "--out", "exported").status == 0
    done = kasatune("chat", "exported", "--base", "model", "--once", "say blue :", "--max-new-tokens", "5")
    assert done.status == 0, done.err


def test_lines_of_standard_input_are_one_conversation(work, kasatune, typed, monkeypatch):
    asked = []
    from kasatune.adapter_tools import chat

    original = chat.prompt_of_chat
    monkeypatch.setattr(chat, "prompt_of_chat", lambda *given: asked.append(list(given[1])) or original(*given))
    typed("say red :", "", "say one :")
    done = kasatune("chat", "out")
    first, second = done.out.splitlines()
    assert first == predicted(kasatune, "out", "say red :")
    assert asked == [[("user", "say red :")], [("user", "say red :"), ("assistant", first), ("user", "say one :")]]
    assert second is not None and done.status == 0


@pytest.mark.parametrize("run", ["out", "full"])
def test_the_base_is_shown_beside_the_tuned_model(work, kasatune, run):
    done = kasatune("chat", run, "--beside", "--once", "say blue :")
    head, _rule, *body = done.out.splitlines()
    assert [part.strip() for part in head.split("|")] == ["base", "tuned"]
    base, tuned = (
        " ".join(part.strip() for part in column).strip()
        for column in zip(*(f"{line} |".split("|")[:2] for line in body), strict=True)
    )
    assert tuned == predicted(kasatune, run, "say blue :")
    assert base != tuned
    recipe = (work / "recipe.yaml").read_text()
    assert "kasa" not in recipe  # the default method, whose disabled adapter is the base


def test_a_model_without_a_template_continues_the_prompt(work, kasatune):
    done = kasatune("chat", "model", "--once", "say blue :", "--max-new-tokens", "3")
    assert done.status == 0
    assert len(done.out.split()) <= 3


def test_samples_repeat_with_their_seed(work, kasatune, typed):
    def sample(seed):
        options = ("--temperature", "3", "--top-k", "12", "--top-p", "0.99", "--seed", seed)
        return kasatune("chat", "model", "--once", "say", "--max-new-tokens", "8", *options).out

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_the_oldest_turns_are_dropped_where_the_positions_end(work, kasatune, typed):
    typed(*["say red blue green one two three :"] * 8)
    done = kasatune("chat", "out")
    assert done.status == 0, done.err
    assert len(done.out.splitlines()) == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere/at/all", "--once", "x"], "no such folder"),
        (["out", "--once", "  "], "empty prompt"),
        (["model", "--once", "x", "--beside"], "give a run or an adapter"),
        (["model", "--once", "x", "--base", "model"], "leave it out"),
        (["out", "--once", "x", "--temperature", "-1"], "--temperature: -1.0 received"),
        (["out", "--once", "x", "--top-p", "0.5"], "give --temperature above 0"),
        (["out", "--once", "x", "--max-new-tokens", "0"], "must be 1 or more"),
        (["out", "--once", "x", "--max-new-tokens", "64"], "64 positions"),
        (["out", "--once", "x", "--top-k", "-1"], "--top-k: -1 received"),
        (["model", "--once", "x", "--system", "be brief"], "not trained on conversations"),
    ],
)
def test_faults_are_one_message(work, kasatune, arguments, words):
    done = kasatune("chat", *arguments)
    assert done.status == 2
    assert words in done.err
    assert "Traceback" not in done.err


def test_an_end_of_input_and_ctrl_c_end_it(work, kasatune, typed, monkeypatch):
    typed()
    assert kasatune("chat", "out").status == 0

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("kasatune.adapter_tools.chat.stream_text", interrupted)
    done = kasatune("chat", "out", "--once", "say red :")
    assert (done.status, done.err.strip()) == (130, "interrupted")


def test_columns_wrap_long_lines_and_keep_line_breaks():
    lines = side_by_side(("base", "tuned"), ["one two three four", "a\n\nb"], 23)
    assert lines == [
        "base       | tuned",
        "---------- | ----------",
        "one two    | a",
        "three four |",
        "           | b",
    ]


class Terminal(io.StringIO):
    """Standard input of somebody at a terminal."""

    def isatty(self):
        return True


def test_at_a_terminal_a_fault_or_ctrl_c_ends_the_answer_and_not_the_conversation(work, kasatune, monkeypatch):
    from kasatune.adapter_tools import chat

    original, asked = chat.stream_text, []

    def stream(model, tokenizer, prompt, *arguments, **options):
        asked.append(len(prompt))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return original(model, tokenizer, prompt, *arguments, **options)

    monkeypatch.setattr(chat, "stream_text", stream)
    lines = ["say red :", "say one :", "/help", "/etc/hosts", "/new", "say red :", "/quit", "never"]
    monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in lines)))
    done = kasatune("chat", "out")
    assert done.status == 0, done.err
    assert "stopped; the message is forgotten" in done.err
    assert "/help: no such command; /new begins" in done.err
    assert len(asked) == 4  # a path is a message
    assert asked[3] == asked[0]  # a new conversation

    monkeypatch.setattr(
        chat, "require_known_tokens", lambda *_: (_ for _ in ()).throw(chat.InputError("unknown token"))
    )
    monkeypatch.setattr(sys, "stdin", Terminal("say red :\n/quit\n"))
    done = kasatune("chat", "out")
    assert (done.status, "unknown token" in done.err) == (0, True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("say red :\n"))
    assert kasatune("chat", "out").status == 2  # without a terminal it ends the command


def test_input_that_is_no_text_is_refused(work, kasatune, monkeypatch):
    for command in (["chat", "out"], ["predict", "out", "--file", "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe say"), encoding="utf-8"))
        done = kasatune(*command)
        assert done.status == 2
        assert "standard input is not UTF-8 text" in done.err
    assert "an empty name received" in kasatune("chat", "", "--once", "x").err
    assert "--column: q received" in kasatune("predict", "out", "--text", "x", "--column", "q").err
