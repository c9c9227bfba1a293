"""The steps of SimRAG without a model: questions from signatures, the filter, the shuffled corpus, leakage."""

from __future__ import annotations

from collections import Counter

import pytest

from kasatune.data.retrieval.chunks import Chunk, cut_into_chunks
from kasatune.data.retrieval.documents import read_documents
from kasatune.data.retrieval.index import PassageIndex
from kasatune.errors import DataError, RecipeError
from kasatune.metrics.answer_match import contains_answer
from kasatune.simrag.evaluation_questions import evaluation_rows, held_out_documents
from kasatune.simrag.leakage import REPEATED_DOCUMENT, REPEATED_QUESTION, LeakageCheck
from kasatune.simrag.recipe import load_simrag
from kasatune.simrag.round_trip import NOT_RETRIEVED, filter_candidates, retrieval_rate, shuffled_chunks
from kasatune.simrag.self_questions import Candidate, chosen_chunks
from kasatune.simrag.stage_one_rows import ASK, CONTEXT_QA, EXTRACT, STATE, stage_one_rows

pytest.importorskip("bm25s", reason="needs kasatune[rag]")

MODULES = ["package:statistics", "package:shutil", "package:textwrap", "package:heapq"]


@pytest.fixture(scope="module")
def corpus():
    documents, _ = read_documents(MODULES)
    chunks = cut_into_chunks(documents, 80, 10)
    return documents, chunks, PassageIndex(chunks)


@pytest.fixture
def recipe(tmp_path):
    def recipe(**evaluation):
        (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
        path = tmp_path / "recipe.yaml"
        path.write_text(
            f"model: {{name: some/model}}\ncorpus: {{documents: {MODULES}}}\n"
            f"stage_one: {{instructions: {tmp_path}/rows.jsonl, context_qa: package:json}}\nevaluation: {evaluation}\n"
        )
        return load_simrag(path)

    return recipe


def test_an_adapter_to_continue_is_refused(recipe, tmp_path):
    recipe()
    (path,) = tmp_path.glob("*.yaml")
    with pytest.raises(RecipeError, match=r"model\.adapter: both stages train new adapters; merge it"):
        load_simrag(path, ["model.adapter=runs/earlier"])


def test_questions_from_signatures_are_answered_by_their_documents(corpus, recipe):
    documents, chunks, index = corpus
    rows = evaluation_rows(recipe(count=30), documents, index)
    texts = {document.name: document.text for document in documents}
    assert len(rows) == 30 and len({row["question"] for row in rows}) == 30
    assert {row["kind"] for row in rows} >= {"default", "parameter"}
    assert all(contains_answer(texts[row["document"]], row["answer"]) for row in rows)
    assert all(row["document"] in row["question"] for row in rows)
    held_out = held_out_documents(rows)
    assert len(held_out) <= len(documents) / 2 + 1
    assert rows == evaluation_rows(recipe(count=30), documents, index)
    assert not held_out & {chunk.document for chunk in chosen_chunks(recipe(count=30), chunks, held_out)}


def test_stage_one_draws_all_kinds_of_questions_with_contexts_that_answer_them(recipe):
    rows, _ = stage_one_rows(
        recipe().model_copy(update={"stage_one": recipe().stage_one.model_copy(update={"max_context_qa": 12})}),
        LeakageCheck([], []),
    )
    of_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in (CONTEXT_QA, EXTRACT, ASK, STATE)}
    drawn = Counter(row["source"].split(": ")[1].split(" of ")[0] for row in of_kind[CONTEXT_QA])
    assert drawn == {"default": 3, "parameter": 3, "summary": 3, "missing-word": 3}
    assert [len(own) for own in of_kind.values()] == [12, 12, 12, 3]
    for row in of_kind[CONTEXT_QA]:
        prompt, answer = (message["content"] for message in row["messages"])
        passage, question = prompt.rsplit("Question: ", 1)
        name = question.split("`")[-2]
        assert contains_answer(passage, answer)
        # the chunk with the signature, not any one in which the word occurs
        assert "signature" not in question or f"{name}(" in passage
    for row in of_kind[STATE]:
        prompt, claim = (message["content"] for message in row["messages"])
        assert claim in " ".join(prompt.split())
        assert contains_answer(claim, prompt.rsplit("words: ", 1)[1])


def test_more_questions_than_signatures_are_refused(corpus, recipe):
    documents, _, index = corpus
    with pytest.raises(DataError, match=r"evaluation\.count: 5000 received; the signatures of half of the"):
        evaluation_rows(recipe(count=5000), documents, index)


def test_chunks_are_chosen_from_all_documents_in_turn(recipe):
    chunks = [Chunk(name, number, "x", 0) for name in "abc" for number in range(3)]
    chosen = chosen_chunks(recipe(), chunks, {"b"})
    assert [chunk.document for chunk in chosen].count("a") == 3 and len(chosen) == 6
    assert {chunk.document for chunk in chosen[:2]} == {"a", "c"}


CHUNKS = [
    Chunk("danube", 0, "The Danube rises in the Black Forest and ends in the Black Sea near Sulina.", 0),
    Chunk("rhine", 0, "The Rhine rises in the Alps and ends in the North Sea at Rotterdam.", 0),
    Chunk("held", 0, "The Volga ends in the Caspian Sea.", 0),
]


def candidate(question, answer, kind="short", chunk=CHUNKS[0]):
    return Candidate(f"{kind} {question}", chunk, kind, question, answer)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (candidate("Where does the Danube rise?", "Black Forest"), None),
        (candidate("Where does the Rhine end?", "Sulina"), NOT_RETRIEVED),
        (candidate("Where?", "Sulina"), "the question has fewer than 3 words"),
        (candidate("Is the Danube in the Black Sea?", "the Black Sea"), "the question contains the answer"),
        (candidate("The Danube ends somewhere.", "Sulina", "claim"), "the claim does not contain the answer"),
        (candidate("The Danube ends near Sulina.", "Sulina", "claim"), None),
        (candidate("Where does the Volga end?", "Sulina"), REPEATED_QUESTION),
    ],
)
def test_the_round_trip_decides(made, reason):
    check = LeakageCheck(["Where does the Volga end"], [])
    (judged,) = filter_candidates([made], PassageIndex(CHUNKS), 1, check)
    assert judged.reason == reason
    if reason in (None, NOT_RETRIEVED):
        assert len(judged.passages) == 1


def test_a_question_is_kept_once():
    twice = [candidate("Where does the Danube rise?", "Black Forest")] * 2
    judged = filter_candidates(twice, PassageIndex(CHUNKS), 1, LeakageCheck([], []))
    assert [item.reason for item in judged] == [None, "the question repeats an earlier one"]


def test_the_shuffled_corpus_has_the_same_words_and_sizes_and_loses_phrases():
    shuffled = shuffled_chunks(CHUNKS * 20, seed=0)
    words = lambda chunks: sorted(word for chunk in chunks for word in chunk.text.split())  # noqa: E731
    assert words(shuffled) == words(CHUNKS * 20)
    assert [len(chunk.text.split()) for chunk in shuffled] == [len(chunk.text.split()) for chunk in CHUNKS * 20]
    asked = [candidate("Where does the Danube rise?", "the Black Forest")]
    judged = filter_candidates(asked, PassageIndex(CHUNKS), 1, LeakageCheck([], []))
    assert retrieval_rate(judged, PassageIndex(CHUNKS), 1) == 1
    assert retrieval_rate(judged, PassageIndex(shuffled), 1) == 0


def test_leakage_is_found_by_question_and_by_text():
    held_out = " ".join(f"word{number}" for number in range(60))
    check = LeakageCheck(["What is it?"], [held_out])
    assert check.fault("other text", "what is it") == REPEATED_QUESTION
    assert check.fault("other text", "what is that") is None
    assert check.fault(held_out[:200]) == REPEATED_DOCUMENT
    assert check.fault(" ".join(f"other{number}" for number in range(60))) is None
    assert check.fault("short") is None
