"""The evaluation questions: made by rule from signatures, or read from a file, and the documents that they hold out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kasatune.data.retrieval.documents import Document
from kasatune.data.retrieval.index import PassageIndex
from kasatune.data.retrieval.package_documentation import PACKAGE, Fact, documented_objects
from kasatune.data.tasks.rag_qa import read_questions
from kasatune.errors import DataError
from kasatune.metrics.answer_match import contains_answer, normalize_answer
from kasatune.simrag.recipe import SIGNATURES, SimragRecipe, sources
from kasatune.wording import counted

_PER_DOCUMENT = 2
_MOST_HELD_OUT = 0.5
_MOST_OF_AN_ANSWER = 0.05  # share of the questions that may have one answer, or a constant would score

Row = dict[str, Any]


def evaluation_rows(recipe: SimragRecipe, documents: Sequence[Document], index: PassageIndex) -> list[Row]:
    """The questions as {"question", "answer", "document", "kind"}; `document` is held out of stage II.

    Raises:
        DataError: there are fewer questions than the recipe asks for, or a file is unreadable.
    """
    if recipe.evaluation.questions == SIGNATURES:
        return _from_signatures(recipe, documents)
    return _from_file(recipe, documents, index)


def held_out_documents(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """The names of the documents that answer the questions."""
    return {row["document"] for row in rows if row["document"] is not None}


def shuffled_order(name: str, seed: int) -> str:
    """A sort key that orders names at random, equally on every machine."""
    return hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()


def _from_signatures(recipe: SimragRecipe, documents: Sequence[Document]) -> list[Row]:
    """At most two questions a document, of different kinds, from at most half of the documents.

    An answer occurs in at most 5 % of the questions.
    """
    wanted, seed = recipe.evaluation.count, recipe.training.seed
    facts: dict[str, tuple[Fact, ...]] = {
        item.name: item.facts
        for source in sources(recipe.corpus.documents)
        if source.startswith(PACKAGE)
        for item in documented_objects(source.removeprefix(PACKAGE))
    }
    names = [document.name for document in documents]
    rows: list[Row] = []
    most = max(1, round(_MOST_OF_AN_ANSWER * wanted))
    answers: Counter[str] = Counter()
    held_out = 0
    for number, name in enumerate(sorted(names, key=lambda name: shuffled_order(name, seed))):
        if len(rows) >= wanted or held_out >= _MOST_HELD_OUT * len(names):
            break
        rare = [fact for fact in facts.get(name, ()) if answers[normalize_answer(fact.answer)] < most]
        chosen = _choose(rare, number, seed)
        answers.update(normalize_answer(fact.answer) for fact in chosen)
        held_out += bool(chosen)
        rows += [{"question": f.question, "answer": f.answer, "document": name, "kind": f.kind} for f in chosen]
    if len(rows) < wanted:
        raise DataError(
            f"evaluation.count: {wanted} received; the signatures of half of the {counted(len(names), 'document')} give"
            f" {counted(len(rows), 'question')}; lower it, or add package:MODULE to corpus.documents"
        )
    return rows[:wanted]


def _choose(facts: Sequence[Fact], number: int, seed: int) -> list[Fact]:
    """One fact of each of two kinds, the kinds in turn from document to document."""
    kinds = sorted({fact.kind for fact in facts})
    if not kinds:
        return []
    turned = kinds[number % len(kinds) :] + kinds[: number % len(kinds)]
    by_kind = [[fact for fact in facts if fact.kind == kind] for kind in turned[:_PER_DOCUMENT]]
    return [min(own, key=lambda fact: shuffled_order(fact.question, seed)) for own in by_kind]


def _from_file(recipe: SimragRecipe, documents: Sequence[Document], index: PassageIndex) -> list[Row]:
    """The first questions of a file; without a column `document`, the best passage with the answer names it."""
    path = Path(recipe.evaluation.questions)
    questions = read_questions(path)
    if len(questions) < recipe.evaluation.count:
        raise DataError(
            f"evaluation.count: {recipe.evaluation.count} received; {path} has {counted(len(questions), 'question')}; "
            "lower it"
        )
    names = {document.name for document in documents}
    rows = []
    for number, question in enumerate(questions[: recipe.evaluation.count], start=1):
        document = question.document
        if document is not None and document not in names:
            raise DataError(f"{path}, row {number}: document {document!r} is not in the corpus; correct its name")
        if document is None:
            best = index.search(question.text, len(index.chunks))
            answering = (
                item.chunk.document
                for item in best
                if any(contains_answer(item.chunk.text, answer) for answer in question.answers)
            )
            document = next(answering, None)
        answers: Any = question.answers[0] if len(question.answers) == 1 else list(question.answers)
        rows.append({"question": question.text, "answer": answers, "document": document, "kind": "file"})
    return rows
