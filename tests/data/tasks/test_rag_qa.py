"""The task rag-qa without a model: rows, prompts with passages, the split without them, faults, scores."""

from __future__ import annotations

import json

import pytest

from kasatune.data.tasks import load_evaluation, load_task
from kasatune.data.tasks.rag_qa import CLOSED_BOOK, answer_prompt, passages_of
from kasatune.data.tasks.table import TASKS
from kasatune.data.tasks.task_info import RetrievedPassage
from kasatune.errors import DataError, RecipeError
from kasatune.evaluation.answer_scores import score_short_answers
from kasatune.evaluation.text_scores import GeneratedText
from kasatune.recipes.schema import Recipe

pytest.importorskip("bm25s", reason="needs kasatune[rag]")


@pytest.fixture
def task(tmp_path):
    documents = [{"id": f"land{n}", "text": f"The capital of land{n} is town{n}."} for n in range(6)]
    questions = [{"question": f"What is the capital of land{n}?", "answer": f"town{n}"} for n in range(5)]
    questions.append({"question": "What is the capital of land5?", "answer": ["town5", "the town five"]})
    for name, rows in (("documents", documents), ("questions", questions), ("train", questions[:3])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def task(**changes):
        section = {
            "name": "rag-qa",
            "train": str(tmp_path / "train.jsonl"),
            "validation": str(tmp_path / "questions.jsonl"),
            "corpus": str(tmp_path / "documents.jsonl"),
            "passages": 2,
            **changes,
        }
        return Recipe.model_validate({"model": {"name": "m"}, "task": section}).task

    return task


def test_every_question_is_asked_with_its_passages_and_without(task):
    data = load_task(task())
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 3, "validation": 7, CLOSED_BOOK: 7}
    prompts = data.splits["validation"].first
    assert prompts[5] == prompts[6] and data.splits["validation"].labels[5:] == ["town5", "the town five"]
    assert prompts[0].index("[1] land0: The capital of land0 is town0.") < prompts[0].index("[2] ")
    assert prompts[0].endswith("\n\nQuestion: What is the capital of land0?")
    assert "town" not in data.splits[CLOSED_BOOK].first[0]
    assert "validation: the retrieved passages contain the answer of 6 of 7 rows" in data.notes
    assert len(load_evaluation(task(), task().train, None).splits[CLOSED_BOOK]) == 3


def test_a_share_of_the_questions_is_held_out(task):
    data = load_task(task(train=task().validation, validation=0.5))
    train, validation = data.splits["train"], data.splits["validation"]
    assert len(set(train.first)) == len(set(validation.first)) == 3
    assert not set(train.first) & set(validation.first)
    assert all(passages_of(prompt) for prompt in [*train.first, *validation.first])


def test_conversations_are_trained_on_as_they_are(task, tmp_path):
    rows = [{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_task(task(train=str(tmp_path / "chats.jsonl"))).splits["train"].first == ["hello"]


def test_the_passages_of_a_prompt_are_read_back():
    passages = [RetrievedPassage("d", "one\n\nQuestion: two", 1.0), RetrievedPassage("e", "three", 0.5)]
    assert passages_of(answer_prompt("why?", passages)) == "[1] d: one\n\nQuestion: two\n\n[2] e: three"
    assert passages_of(answer_prompt("why?", [])) == ""


def test_scores_are_means_over_the_questions():
    prompts = [answer_prompt("a?", [RetrievedPassage("d", "it is red", 1.0)]), answer_prompt("b?", [])]
    generated = GeneratedText("validation", prompts, ["The red.", "dark blue"], [["red"], ["blue", "green"]])
    result = score_short_answers(TASKS["rag-qa"], generated, lambda pairs: [])
    assert result.metrics == {"exact_match": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2), "retrieval_recall": 0.5}
    assert [row["retrieved"] for row in result.details] == [True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": None}, "task.corpus: missing; rag-qa reads your own data"),
        ({"chunk_words": 10, "chunk_overlap": 10}, r"task.chunk_overlap: 10 received; must be below"),
        ({"passages": 0}, "task.passages: 0"),
        ({"name": "instruction", "passages": 2}, "task.corpus: .* received; instruction does not read it"),
        ({"name": "instruction", "corpus": None, "passages": 2}, "task.passages: 2 received; instruction retrieves"),
    ],
)
def test_keys_that_do_not_fit_are_refused(task, changes, message):
    with pytest.raises(RecipeError, match=message):
        task(**changes)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x?", "answer": None}, "column 'answer': no text"),
        ({"question": "x?", "answer": []}, r"column 'answer': \[\] is not text"),
        ({"question": "x?", "answer": ["a", 3]}, "column 'answer': 3 is not text"),
        ({"question": " ", "answer": "a"}, "column 'question': no text"),
        ({"query": "x?", "answer": "a"}, "no column 'question'"),
    ],
)
def test_a_row_that_is_no_question_is_named(task, tmp_path, row, message):
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        load_task(task())
