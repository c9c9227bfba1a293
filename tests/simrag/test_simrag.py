"""SimRAG from documents to the report: files, provenance, resumption, both ways between the stages, faults."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from kasatune.runs.directory import read_recipe
from tests.simrag.toys import LANDS, ScriptedWriter, write_work_folder

pytest.importorskip("bm25s", reason="needs kasatune[rag]")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a finished run in `out`."""
    from kasatune.cli.main import run

    folder = write_work_folder(tmp_path_factory.mktemp("simrag"))
    before = os.getcwd()  # noqa: PTH109 - chdir needs a string
    os.chdir(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kasatune.simrag.self_questions.generate", ScriptedWriter())
            assert run(["simrag", "recipe.yaml", "--out", "out"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def inside(work, monkeypatch):
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def run():
    from kasatune.cli.main import run

    return run


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_result_compares_base_and_both_stages_on_the_same_questions(work):
    result = json.loads((work / "out" / "simrag.json").read_text())
    for context in ("passages", "closed_book"):
        scores = result[context]["scores"]
        assert list(scores) == ["base", "stage-1", "stage-2"]
        assert all(low <= mean <= high for own in scores.values() for mean, low, high in own.values())
        assert [(d["system"], d["minus"]) for d in result[context]["differences"]] == [
            ("stage-1", "base"),
            ("stage-2", "stage-1"),
            ("stage-2", "base"),
        ]
    assert result["retrieval_recall"][0] == 1 and result["evaluation"]["document_recall"] == 1
    assert result["evaluation"]["questions"] == 3 and result["evaluation"]["held_out_documents"] == 3
    assert set(result["seconds"]) == {"base", "stage-1", "generation", "filter", "stage-2"}


def test_stage_one_trains_each_context_question_in_three_ways(work):
    kinds = [row["kind"] for row in rows(work / "out" / "stage-1.jsonl")]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "instruction": 4,
        "context-qa": 4,
        "extract-answer": 4,
        "ask-question": 4,
    }
    by_source = {
        row["kind"]: row for row in rows(work / "out" / "stage-1.jsonl") if row["source"].endswith("context.jsonl#2")
    }
    assert by_source["ask-question"]["messages"][1]["content"] == "where does port1 lie"
    assert by_source["extract-answer"]["messages"][1]["content"] == "bay1"
    assert by_source["context-qa"]["messages"][0]["content"].endswith("Question: where does port1 lie")


def test_held_out_documents_stay_in_the_index_and_out_of_stage_two(work):
    evaluation = rows(work / "out" / "evaluation.jsonl")
    assert [row["document"] for row in evaluation] == ["land0", "land1", "land2"]  # the second one by retrieval
    generated = [row for row in rows(work / "out" / "stage-2.jsonl") if "document" in row]
    assert generated
    assert not {"land0", "land1", "land2"} & {row["document"] for row in generated}
    assert not any(name.startswith(("land0[", "land1[", "land2[")) for row in generated for name in row["passages"])
    texts = {row["document"] for row in rows(work / "out" / "generated.jsonl")}
    assert texts <= {f"land{land}" for land in range(3, LANDS)}
    leakage = json.loads((work / "out" / "simrag.json").read_text())["leakage"]
    assert leakage["rows_from_held_out_documents"] == leakage["rows_with_held_out_passages"] == 0


def test_every_generated_text_and_pair_has_its_provenance(work):
    texts = {row["key"]: row for row in rows(work / "out" / "generated.jsonl")}
    pairs = rows(work / "out" / "pairs.jsonl")
    assert all(
        {"step", "document", "chunk", "prompt_sha256", "model", "decoding", "text"} <= set(row)
        for row in texts.values()
    )
    assert len({row["model"] for row in texts.values()}) == 1
    assert all(texts[pair["key"]]["text"] == pair["question"] for pair in pairs)
    trained = {row["source"] for row in rows(work / "out" / "stage-2.jsonl") if "document" in row}
    assert trained == {pair["key"] for pair in pairs if pair["kept"]}
    assert {pair["kind"] for pair in pairs} == {"short", "choice", "claim"}


def test_kept_pairs_are_asked_in_three_forms_with_passages(work):
    generated = {row["kind"]: row for row in rows(work / "out" / "stage-2.jsonl") if "document" in row}
    pairs = {pair["key"]: pair for pair in rows(work / "out" / "pairs.jsonl")}
    for kind, row in generated.items():
        prompt, answer = (message["content"] for message in row["messages"])
        pair = pairs[row["source"]]
        assert prompt.startswith("Answer the question with a few words from the passages.\n\n[1] land")
        if kind == "generated-short":
            assert prompt.endswith(f"Question: {pair['question']}") and answer == pair["answer"]
        if kind == "generated-choice":
            assert "Choose one: " in prompt and answer in prompt.rpartition("Choose one: ")[2].split("; ")
        if kind == "generated-claim":
            assert answer in ("yes", "no")
    claims = [row for row in rows(work / "out" / "stage-2.jsonl") if row["kind"] == "generated-claim"]
    for row in claims:
        prompt, answer = (message["content"] for message in row["messages"])
        claim = prompt.rpartition("yes or no? ")[2]
        assert (claim == pairs[row["source"]]["question"]) == (answer == "yes")


def test_the_filter_keeps_more_than_of_a_shuffled_corpus(work):
    record = json.loads((work / "out" / "filter.json").read_text())
    assert record["retrieval_rate"] == 1 and record["shuffled_retrieval_rate"] < 0.9
    assert record["kept"] + sum(record["left_out"].values()) == record["candidates"]


def test_the_report_shows_scores_examples_and_the_recipe(work):
    page = (work / "out" / "report.html").read_text()
    assert "what is the capital of land0" in page and "<h3>Kept</h3>" in page
    assert "in a corpus of the same words in random order" in page and "chunk_words: 20" in page
    assert "<script" not in page and "://" not in page


def test_predict_and_chat_answer_with_the_corpus_and_show_passages(inside, run, capsys):
    assert run(["predict", "out/stage-2", "--text", "what is the capital of land5", "--json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)
    assert item["passages"][0]["document"] == "land5" and "town5" in item["passages"][0]["text"]
    assert run(["predict", "out/stage-2", "--text", "what is the capital of land5"]) == 0
    assert "land5 (" in capsys.readouterr().out
    assert run(["chat", "out/stage-2", "--once", "what is the capital of land7", "--max-new-tokens", "2"]) == 0
    printed = capsys.readouterr()
    assert "[1] land7" in printed.err and "town7" in printed.err


def test_evaluate_repeats_the_scores_with_and_without_passages(inside, run, capsys):
    metrics = json.loads((inside / "out" / "stage-2" / "metrics.json").read_text())
    assert metrics["metrics"]["retrieval_recall"] == 1 and metrics["closed_book"]["retrieval_recall"] == 0
    assert run(["evaluate", "out/stage-2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == metrics["metrics"]
    assert run(["evaluate", "out/stage-2", "--split", "closed_book", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == metrics["closed_book"]


def test_a_stopped_run_continues_to_the_same_files(inside, run, monkeypatch, capsys):
    """Stopped while it generates, in the second of its batches; then before stage II; then it ends."""
    monkeypatch.setattr("kasatune.simrag.self_questions.generate", ScriptedWriter(fail_after=1))
    assert run(["simrag", "recipe.yaml", "--out", "again"]) == 130
    assert "--resume" in capsys.readouterr().err
    stored = (inside / "again" / "generated.jsonl").read_bytes()
    with (inside / "again" / "generated.jsonl").open("ab") as file:
        file.write(b'{"key": "cut off by a k')
    assert run(["simrag", "recipe.yaml", "--out", "again"]) == 2  # it is not empty
    writer = ScriptedWriter()
    monkeypatch.setattr("kasatune.simrag.self_questions.generate", writer)
    monkeypatch.setattr("kasatune.simrag.pipeline.stage_two_rows", _interrupt)
    assert run(["simrag", "recipe.yaml", "--out", "again", "--resume"]) == 130
    assert (inside / "again" / "generated.jsonl").read_bytes().startswith(stored)
    monkeypatch.undo()
    monkeypatch.chdir(inside)
    monkeypatch.setattr("kasatune.simrag.self_questions.generate", None)  # nothing is generated again
    assert run(["simrag", "recipe.yaml", "--out", "again", "--resume"]) == 0
    for name in (
        "corpus.jsonl",
        "evaluation.jsonl",
        "stage-1.jsonl",
        "generated.jsonl",
        "pairs.jsonl",
        "stage-2.jsonl",
    ):
        assert (inside / "again" / name).read_bytes() == (inside / "out" / name).read_bytes(), name
    for name in ("base.json", "stage-1/predictions.json", "stage-2/predictions.json", "stage-2-closed-book.json"):
        assert (inside / "again" / name).read_bytes() == (inside / "out" / name).read_bytes(), name
    capsys.readouterr()
    assert run(["simrag", "recipe.yaml", "training.seed=1", "--out", "again", "--resume"]) == 2
    assert "training.seed: 0 then, 1 now" in capsys.readouterr().err


def test_stage_two_begins_where_stage_one_ended(inside):
    first = json.loads((inside / "out" / "stage-1" / "metrics.json").read_text())
    second = json.loads((inside / "out" / "stage-2" / "metrics.json").read_text())
    assert second["start"]["start"]["loss"] == pytest.approx(first["metrics"]["loss"], abs=1e-5)
    assert second["start"]["start"]["loss"] != second["metrics"]["loss"]


def test_stage_two_on_the_merged_base(inside, run):
    _copy_up_to(inside, "merged", generated=True)
    recipe = inside / "merged" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("begin: continue", "begin: merge"))
    assert run(["simrag", "recipe.yaml", "stage_two.begin=merge", "--out", "merged", "--resume"]) == 0
    first = json.loads((inside / "merged" / "stage-1" / "metrics.json").read_text())
    second = json.loads((inside / "merged" / "stage-2" / "metrics.json").read_text())
    assert second["start"]["start"]["loss"] == pytest.approx(first["metrics"]["loss"], abs=1e-5)
    assert read_recipe(inside / "merged" / "stage-2").model.name == "merged/stage-1-merged"
    assert json.loads((inside / "merged" / "simrag.json").read_text())["begin"] == "merge"


def test_a_filter_that_keeps_nothing_is_one_message_and_loses_nothing(inside, run, monkeypatch, capsys):
    _copy_up_to(inside, "nothing", generated=False)
    monkeypatch.setattr("kasatune.simrag.self_questions.generate", ScriptedWriter(answer="absent"))
    assert run(["simrag", "recipe.yaml", "--out", "nothing", "--resume"]) == 1
    error = capsys.readouterr().err
    assert "the filter kept none of 0 generated pairs (9 times: the answer is not in its passage)" in error
    assert "Traceback" not in error
    assert (inside / "nothing" / "stage-1" / "metrics.json").is_file()
    assert len(rows(inside / "nothing" / "generated.jsonl")) == 9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("corpus.documents=absent", 'corpus.documents: "absent": no such file or folder'),
        ("corpus.documents=model", "the folder has no file that ends in .txt, .md, .jsonl, .pdf"),
        ("corpus.documents=blank.txt", "none of 1 document has text"),
        ("corpus.documents=empty.txt", "the file is empty"),
        ("corpus.chunk_overlap=20", "must be below corpus.chunk_words (20)"),
        ("training.select=best", "training.select: only last"),
        ("evaluation.questions=signatures", "names no package:MODULE"),
        ("evaluation.count=9", "evaluation.count: 9 received; questions.jsonl has 3 questions; lower it"),
        ("method.name=nonsense", "method.name"),
        ("stage_two.kinds=[poem]", "stage_two.kinds"),
        ("stage_two.begin=again", "stage_two.begin"),
        ("model.name=./absent", "model.name: ./absent"),
    ],
)
def test_a_wrong_recipe_is_one_message_and_writes_nothing(inside, run, capsys, override, message):
    (inside / "blank.txt").write_text(" \n")
    (inside / "empty.txt").write_text("")
    assert run(["simrag", "recipe.yaml", override, "--out", "wrong"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (inside / "wrong").exists()


def _copy_up_to(work, name, *, generated):
    """A copy of the finished run as it was before stage II, or before it generated anything."""
    done = ["stage-2", "stage-2.jsonl", "stage-2-closed-book.json", "simrag.json", "report.html"]
    done += [] if generated else ["generated.jsonl", "pairs.jsonl", "pair-rows.jsonl", "filter.json"]
    shutil.copytree(work / "out", work / name, ignore=shutil.ignore_patterns(*done))


def _interrupt(*_):
    raise KeyboardInterrupt
