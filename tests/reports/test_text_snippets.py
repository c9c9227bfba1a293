"""The code in adapter/README.md of a run that writes text gives the first answer of predictions.json."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from kasatune import train
from kasatune.adapter_tools.merge import merge
from kasatune.data.tasks import function_summary
from kasatune.data.tasks.table import TASKS
from kasatune.recipes.schema import Recipe
from kasatune.reports.card import write_card
from tests.data.tasks.commonsense_toys import write_commonsense
from tests.text_toys import WORDS, lines, make_llama, make_text_recipe, write_jsonl

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}say {{ m.content }} : {% elif m.role == 'system' %}# "
    "{{ m.content }} {% else %}### {{ m.content }} <s> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### {% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("snippets") / "llama", max_position_embeddings=96)


def run_of(model: Path, folder: Path, task: dict, **sections) -> Path:
    """A finished run of one step, with its cards."""
    recipe = {
        "model": {"name": str(model)},
        "task": {"max_length": 56, **task},
        "method": {"name": "kasa", "r": 2},
        "training": {"max_steps": 1, "batch_size": 2, "device": "cpu", "learning_rate": 0.03},
        "generation": {"max_new_tokens": 6},
        "output": str(folder / "run"),
    }
    run = train(Recipe.model_validate(recipe | sections), folder / "run")
    write_card(run)
    return run


def answer_of_snippet(run: Path) -> str:
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)[1]
    assert "kasatune" not in code.replace(str(run), "")
    with redirect_stdout(StringIO()) as shown:
        exec(compile(code, "README.md", "exec"), {})
    return shown.getvalue().rstrip("\n")


def first_answer(run: Path) -> str:
    return json.loads((run / "predictions.json").read_text(encoding="utf-8"))["predictions"][0]


def chats(folder: Path) -> dict:
    rows = [
        {
            "messages": [
                {"role": "system", "content": "cafe"},
                {"role": "user", "content": word},
                {"role": "assistant", "content": "one"},
                {"role": "user", "content": "red"},
                {"role": "assistant", "content": f"{word} two"},
            ]
        }
        for word in WORDS
    ]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return {"name": "instruction", "train": str(folder / "rows.json"), "validation": 0.5}


def test_a_run_on_prompts_and_completions(model, tmp_path):
    recipe = make_text_recipe(model, tmp_path, max_steps=1).model_copy(update={"output": str(tmp_path / "run")})
    run = train(recipe, tmp_path / "run")
    write_card(run)
    assert answer_of_snippet(run) == first_answer(run) != ""


def test_a_run_with_beams_and_a_limit_of_ngrams(model, tmp_path):
    task = {"name": "e2e", "data": str(tmp_path / "e2e")}
    (tmp_path / "e2e").mkdir()
    for name in ("train", "valid", "test"):
        rows = [f"name : {word} | area : red||{word} one two" for word in WORDS]
        (tmp_path / "e2e" / f"{name}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    generation = {"max_new_tokens": 8, "num_beams": 3, "length_penalty": 0.8, "no_repeat_ngram_size": 2}
    run = run_of(model, tmp_path, task, generation=generation)
    assert answer_of_snippet(run) == first_answer(run) != ""


def test_a_run_on_questions(model, tmp_path):
    run = run_of(model, tmp_path, {"name": "commonsense/openbookqa", "data": str(write_commonsense(tmp_path / "data"))})
    assert answer_of_snippet(run) == first_answer(run)


@pytest.mark.parametrize("own", [False, True])
def test_a_run_on_conversations_is_asked_with_its_template_by_adapter_and_merge(model, tmp_path, own):
    pytest.importorskip("trl")
    base = shutil.copytree(model, tmp_path / "base")
    if own:
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.chat_template = {"default": TEMPLATE, "tools": "tools"}
        tokenizer.save_pretrained(base)
    run = run_of(base, tmp_path, chats(tmp_path))
    assert answer_of_snippet(run) == first_answer(run) != ""
    merge(run, tmp_path / "merged")
    expected = AutoTokenizer.from_pretrained(run / "adapter")
    if own:
        assert expected.chat_template == {"default": TEMPLATE, "tools": "tools"}
    for folder in (run / "adapter", tmp_path / "merged"):
        assert AutoTokenizer.from_pretrained(folder).chat_template == expected.chat_template
        ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        assert ends == ([0, 1] if own else 1)


def preference(folder: Path) -> dict:
    rows = [{"prompt": f"say {word}", "chosen": word, "rejected": "pub cafe"} for word in WORDS]
    return {"name": "preference", "train": str(write_jsonl(folder / "pairs.jsonl", rows)), "validation": 0.5}


def questions(folder: Path) -> dict:
    documents = [{"id": word, "text": f"say {word} two three"} for word in WORDS]
    rows = [{"question": f"say {word}", "answer": "two three"} for word in WORDS]
    return {
        "name": "rag-qa",
        "train": str(write_jsonl(folder / "questions.jsonl", rows)),
        "validation": 0.5,
        "corpus": str(write_jsonl(folder / "documents.jsonl", documents)),
        "passages": 1,
    }


def mixture(folder: Path, *, first: str) -> dict:
    prompts = {
        "name": "text-generation",
        "train": str(write_jsonl(folder / "prompts.jsonl", lines(8, 1))),
        "validation": 0.5,
        "prompt": "question",
        "completion": "answer",
    }
    parts = [prompts, chats(folder)]
    return {"name": "mixture", "parts": parts if first == "prompts" else parts[::-1], "max_train": 8}


MORE = {
    "preference": preference,
    "rag-qa": questions,
    "mixture of prompts first": lambda folder: mixture(folder, first="prompts"),
    "mixture of chats first": lambda folder: mixture(folder, first="chats"),
    "function-summary": lambda folder: {"name": "function-summary", "max_train": 4, "max_eval": 2},
}


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("task", MORE)
def test_a_run_on_every_other_task_that_writes_text(model, tmp_path, monkeypatch, task, own):
    pytest.importorskip("trl")
    pytest.importorskip("bm25s", reason="needs kasatune[rag]")
    monkeypatch.setattr(function_summary, "LIBRARIES", {"networkx": "networkx"})
    monkeypatch.setattr(function_summary, "MAX_TRAIN", 40)
    monkeypatch.setattr(function_summary, "MAX_HELD_OUT", 20)
    base = shutil.copytree(model, tmp_path / "base")
    if own:
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(base)
    run = run_of(base, tmp_path, MORE[task](tmp_path), generation={"max_new_tokens": 4})
    assert answer_of_snippet(run) == first_answer(run)


def test_the_tests_above_hold_every_task_that_writes_text():
    tried = {"text-generation", "e2e", "commonsense/openbookqa", "instruction", *(name.split()[0] for name in MORE)}
    writing = {info.module for info in TASKS.values() if info.kind == "generation"}
    assert writing == {TASKS[name].module for name in tried}
