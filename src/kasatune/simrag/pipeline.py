"""Run SimRAG, resumable at each step: rows, stage I, generated pairs, round-trip filter, stage II, comparison."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kasatune.data.retrieval.chunks import Chunk, cut_into_chunks
from kasatune.data.retrieval.documents import Document, read_documents
from kasatune.data.retrieval.index import BM25, PassageIndex
from kasatune.data.tasks import load_task
from kasatune.data.tasks.rag_qa import CLOSED_BOOK
from kasatune.errors import OutputError, RecipeError, WorkError
from kasatune.evaluation.task_model import TaskModel, deterministic
from kasatune.io.atomic import is_temporary, write_json, write_text
from kasatune.io.library_noise import quiet
from kasatune.io.locks import LOCK, directory_lock
from kasatune.io.progress import NullProgress, ProgressReporter, progress_listener
from kasatune.io.run_layout import WEIGHT_FOLDERS
from kasatune.llm_client.cache import AnswerCache
from kasatune.recipes.yaml_io import parse_yaml
from kasatune.runs.directory import check_place, read_recipe
from kasatune.simrag.evaluation_questions import evaluation_rows, held_out_documents
from kasatune.simrag.leakage import LeakageCheck
from kasatune.simrag.recipe import STAGE_ONE, STAGE_TWO, SimragRecipe, sources, stage_recipe, to_yaml
from kasatune.simrag.report import write_report
from kasatune.simrag.results import BASE, base_file, compared, filter_record, pair_record
from kasatune.simrag.round_trip import Judged, filter_candidates, retrieval_rate, shuffled_chunks
from kasatune.simrag.self_questions import Writer, chosen_chunks, write_candidates
from kasatune.simrag.stage_one_rows import stage_one_rows
from kasatune.simrag.stage_two_rows import pair_rows, stage_two_rows
from kasatune.simrag.stages import closed_book_file, train_stage, write_scores
from kasatune.training.run import work_errors
from kasatune.wording import counted

RECIPE = "recipe.yaml"
CORPUS = "corpus.jsonl"
EVALUATION = "evaluation.jsonl"
GENERATED = "generated.jsonl"
PAIRS = "pairs.jsonl"
FILTER = "filter.json"
RESULT = "simrag.json"
NOTES = "notes.json"
SECONDS = "seconds.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class _Corpus:
    documents: list[Document]
    chunks: list[Chunk]
    index: PassageIndex


def simrag(
    recipe: SimragRecipe, out: Path, *, resume: bool = False, display: ProgressReporter | None = None
) -> dict[str, Any]:
    """Run both stages and the evaluation, and write everything to `out`.

    Each step writes its files completely or not at all, and generated text is stored batch by batch; a killed run
    continues with `resume` where it stopped, and its files are those of an uninterrupted one.

    Args:
        recipe: a validated recipe.
        out: a new or empty directory, unless `resume` is set.
        resume: continue the run in `out`.
        display: receives the progress; None for no output.

    Returns:
        The content of simrag.json.

    Raises:
        InputError: the recipe, a document, a row, the model or the output is invalid.
        WorkError: the filter keeps no pair, or training failed; what was written stays in `out`.
    """
    out = Path(out)
    reporter = display or NullProgress()
    check_output(recipe, out, resume=resume)
    pipeline = _Pipeline(recipe, out, reporter)
    with ExitStack() as stack:
        stack.callback(reporter.finish)
        stack.enter_context(work_errors(out))
        out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(directory_lock(out, what="SimRAG run"))
        stack.enter_context(quiet(reporter.message))
        stack.enter_context(progress_listener(reporter.progress))
        return pipeline.run()


def check_output(recipe: SimragRecipe, out: Path, *, resume: bool) -> None:
    """Check that a run may be written to `out`; writes nothing itself.

    Raises:
        OutputError: `out` is a file, cannot be written, or is not empty without a `resume` of the same recipe.
    """
    check_place(out)
    if not out.is_dir() or all(path.name == LOCK or is_temporary(path) for path in out.iterdir()):
        return
    if not resume:
        raise OutputError(f"{out} is not empty; give another directory, or --resume")
    path = out / RECIPE
    if not path.is_file():
        raise OutputError(f"{out} holds no SimRAG run to resume ({RECIPE} is missing); give another directory")
    try:
        before = SimragRecipe.model_validate(parse_yaml(path.read_text(encoding="utf-8")))
    except ValueError as fault:
        raise RecipeError([f"damaged ({fault}); give another directory"], str(path)) from fault
    old, new = before.model_dump(), recipe.model_dump()
    changed = [
        f"{section}.{key}: {old[section].get(key)!r} then, {new[section].get(key)!r} now"
        for section in old
        for key in {**old[section], **new[section]}
        if old[section].get(key) != new[section].get(key)
    ]
    if changed:
        raise OutputError(f"{out} was started with another recipe ({'; '.join(changed)}); give another directory")


def _documents(recipe: SimragRecipe, out: Path) -> tuple[list[Document], list[str]]:
    """The corpus as it was when the run began."""
    stored = out / CORPUS
    return read_documents([str(stored)] if stored.is_file() else sources(recipe.corpus.documents))


class _Pipeline:
    """The steps of one run; the rows that it begins with are read or made at once, and nothing is written before `run`.

    Args:
        recipe: its recipe.
        out: its directory.
        display: receives the progress.

    Raises:
        InputError: a document, a row or a question is missing or invalid, or the retriever is not available.
    """

    def __init__(self, recipe: SimragRecipe, out: Path, display: ProgressReporter) -> None:
        self._recipe, self._out, self._display = recipe, out, display
        corpus = recipe.corpus
        documents, notes = _documents(recipe, out)
        chunks = cut_into_chunks(documents, corpus.chunk_words, corpus.chunk_overlap)
        self._corpus = _Corpus(documents, chunks, PassageIndex(chunks, corpus.retriever))
        self._notes: dict[str, Any] = self._read_json(NOTES) or {"corpus": list(notes)}
        evaluation = self._read(EVALUATION)
        self._evaluation = evaluation or evaluation_rows(recipe, documents, self._corpus.index)
        self._held_out = held_out_documents(self._evaluation)
        self._check = LeakageCheck(
            (row["question"] for row in self._evaluation),
            (document.text for document in documents if document.name in self._held_out),
        )
        first_rows = self._read(f"{STAGE_ONE}.jsonl")
        if first_rows is None:
            first_rows, left_out = stage_one_rows(recipe, self._check)
            self._notes["stage_one_left_out"] = dict(left_out)
        self._first_rows = first_rows

    def run(self) -> dict[str, Any]:
        """Every step that is not done yet."""
        evaluation, held_out, first_rows = self._evaluation, self._held_out, self._first_rows
        if not (self._out / f"{STAGE_ONE}.jsonl").is_file():
            self._prepare(evaluation, first_rows)
        for note in self._notes["corpus"]:
            self._display.message(note)
        self._display.message(
            f"{counted(len(self._corpus.documents), 'document')}, {counted(len(evaluation), 'question')} about "
            f"{len(held_out)} of them, {counted(len(first_rows), 'row')} for stage I"
        )
        self._score_base()
        with self._timed(STAGE_ONE):
            train_stage(self._recipe, self._out, STAGE_ONE, self._display)
        pairs = self._pairs(held_out, self._check)
        if not (self._out / f"{STAGE_TWO}.jsonl").is_file():
            self._write(f"{STAGE_TWO}.jsonl", stage_two_rows(self._recipe, first_rows, pairs))
        with self._timed(STAGE_TWO):
            train_stage(self._recipe, self._out, STAGE_TWO, self._display)
        return self._finish(evaluation, held_out, first_rows)

    def _prepare(self, evaluation: Sequence[Row], first_rows: Sequence[Row]) -> None:
        """Write what the run begins with; the recipe first, so that the directory can be resumed."""
        write_text(self._out / RECIPE, to_yaml(self._recipe))
        self._write(CORPUS, ({"id": item.name, "text": item.text} for item in self._corpus.documents))
        self._write(EVALUATION, evaluation)
        write_json(self._out / NOTES, self._notes)
        self._write(f"{STAGE_ONE}.jsonl", first_rows)

    def _score_base(self) -> None:
        """Answer the evaluation questions with the untouched base, with and without passages."""
        files = {"validation": base_file(self._out), CLOSED_BOOK: closed_book_file(self._out, BASE)}
        if all(path.is_file() for path in files.values()):
            return
        own = stage_recipe(self._recipe, self._out, STAGE_ONE)
        with self._timed(BASE), deterministic():
            data = load_task(own.task)
            task_model = TaskModel.for_base(own, None)
            for split, path in files.items():
                write_scores(task_model, data, split, path)

    def _pairs(self, held_out: set[str], check: LeakageCheck) -> list[Row]:
        """The training rows of the kept pairs, generated and filtered unless that is done.

        Raises:
            WorkError: the filter keeps none.
        """
        stored = self._read("pair-rows.jsonl")
        if stored is not None:
            return stored
        recipe, index = self._recipe, self._corpus.index
        run_dir = self._out / STAGE_ONE
        with self._timed("generation"), deterministic(), AnswerCache(self._out / GENERATED) as texts:
            task_model = TaskModel.for_saved_run(read_recipe(run_dir), None, run_dir)
            writer = Writer(task_model, texts, _weights_sha256(run_dir))
            chunks = chosen_chunks(recipe, self._corpus.chunks, held_out)
            candidates, without_question = write_candidates(recipe, chunks, writer)
        with self._timed("filter"):
            judged = filter_candidates(candidates, index, recipe.corpus.passages, check)
            rate = retrieval_rate(judged, index, recipe.corpus.passages)
            shuffled = PassageIndex(shuffled_chunks(self._corpus.chunks, recipe.training.seed), BM25)
            shuffled_rate = retrieval_rate(judged, shuffled, recipe.corpus.passages)
            rows, judged = pair_rows(recipe, judged, index, held_out)
        record = filter_record(judged, rate, shuffled_rate, len(rows)) | {
            "chunks": len(chunks),
            "answers_left_out": without_question,
        }
        self._write(PAIRS, map(pair_record, judged))
        write_json(self._out / FILTER, record)
        self._require_pairs(judged, record)
        self._display.message(
            f"filter: {record['kept']} of {counted(len(judged), 'pair')} kept; answer retrieved for {rate:.1%} of the "
            f"questions, {shuffled_rate:.1%} in the shuffled corpus"
        )
        self._write("pair-rows.jsonl", rows)
        return rows

    def _require_pairs(self, judged: Sequence[Judged], record: Mapping[str, Any]) -> None:
        if record["kept"]:
            return
        reasons = {**record["answers_left_out"], **record["left_out"]}
        listed = "; ".join(f"{number} times: {reason}" for reason, number in reasons.items()) or "no chunks are left"
        raise WorkError(
            f"{self._out}: the filter kept none of {counted(len(judged), 'generated pair')} ({listed}). The model of "
            f"stage I and every generated text are in {self._out}: read {PAIRS}, then start in another directory with "
            "more stage_one rows, corpus.passages or stage_two.chunks"
        )

    def _finish(self, evaluation: Sequence[Row], held_out: set[str], first_rows: Sequence[Row]) -> dict[str, Any]:
        second_rows = self._read(f"{STAGE_TWO}.jsonl") or []
        content = {
            "schema_version": 1,
            "model": self._recipe.model.base_name,
            "method": self._recipe.method.name,
            "begin": self._recipe.stage_two.begin,
            "corpus": {
                "documents": len(self._corpus.documents),
                "chunks": len(self._corpus.chunks),
                "retriever": self._recipe.corpus.retriever,
                "passages": self._recipe.corpus.passages,
                "notes": self._notes["corpus"],
            },
            "evaluation": {
                "questions": len(evaluation),
                "held_out_documents": len(held_out),
                "kinds": _counts(row["kind"] for row in evaluation),
                "document_recall": self._document_recall(evaluation),
            },
            "leakage": self._leakage(held_out, second_rows),
            "rows": {
                stage: _counts(row["kind"] for row in rows)
                for stage, rows in ((STAGE_ONE, first_rows), (STAGE_TWO, second_rows))
            },
            "filter": self._read_json(FILTER),
            **compared(self._out),
            "seconds": self._read_json(SECONDS),
        }
        write_json(self._out / RESULT, content)
        write_report(content, self._out)
        return content

    def _document_recall(self, evaluation: Sequence[Row]) -> float | None:
        """Share of the questions whose document is among the retrieved passages; None if no document is known."""
        known = [row for row in evaluation if row["document"] is not None]
        k = self._recipe.corpus.passages
        hits = sum(
            row["document"] in {hit.chunk.document for hit in self._corpus.index.search(row["question"], k)}
            for row in known
        )
        return hits / len(known) if known else None

    def _leakage(self, held_out: set[str], rows: Sequence[Row]) -> dict[str, Any]:
        """Rows of stage II that were made from, or show, a held-out document (always 0), and what the check removed."""
        generated = [row for row in rows if "document" in row]
        documents = {chunk.name: chunk.document for chunk in self._corpus.chunks}
        return {
            "rows_from_held_out_documents": sum(row["document"] in held_out for row in generated),
            "rows_with_held_out_passages": sum(
                any(documents[name] in held_out for name in row["passages"]) for row in generated
            ),
            "stage_one_left_out": self._notes.get("stage_one_left_out", {}),
        }

    @contextmanager
    def _timed(self, step: str) -> Generator[None]:
        """Add the seconds of a step to seconds.json, also if it is stopped."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = self._read_json(SECONDS) or {}
            seconds[step] = round(seconds.get(step, 0.0) + time.perf_counter() - start, 3)
            write_json(self._out / SECONDS, seconds)

    def _read(self, name: str) -> list[Row] | None:
        path = self._out / name
        if not path.is_file():
            return None
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def _read_json(self, name: str) -> Any:
        path = self._out / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def _write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        write_text(self._out / name, "".join(json.dumps(row) + "\n" for row in rows))


def _counts(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def _weights_sha256(run_dir: Path) -> str:
    """A hash of the weights that a run saved."""
    digest = hashlib.sha256()
    for folder in WEIGHT_FOLDERS:
        for path in sorted((run_dir / folder).glob("*.safetensors")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
