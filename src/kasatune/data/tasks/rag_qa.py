"""The task `rag-qa`: short answers to questions, with passages retrieved from a corpus in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from kasatune.data.readers.conversations import Chat, read_chats
from kasatune.data.readers.faults import Faults, show
from kasatune.data.readers.tables import column_names, read_table
from kasatune.data.retrieval.chunks import cut_into_chunks
from kasatune.data.retrieval.documents import read_documents
from kasatune.data.retrieval.index import PassageIndex
from kasatune.data.tasks.dataset import (
    ChatRows,
    TaskData,
    TaskSettings,
    hold_out,
    make_task_data,
    require_own_files,
    validation_share,
)
from kasatune.data.tasks.task_info import RetrievedPassage, RetrievedPrompt, TaskInfo
from kasatune.errors import DataError
from kasatune.metrics.answer_match import contains_answer
from kasatune.wording import counted

CLOSED_BOOK = "closed_book"
"""The split with the questions of "validation" and no passages."""

_WITH_PASSAGES = "Answer the question with a few words from the passages.\n\n{passages}\n\nQuestion: {question}"
_WITHOUT = "Answer the question with a few words.\n\nQuestion: {question}"


class RagSettings(TaskSettings, Protocol):
    """The keys of the recipe's `task` section that only this task reads."""

    @property
    def corpus(self) -> str | list[str] | None:
        """Files, folders and packages with the documents, see `read_documents`."""
        ...

    @property
    def retriever(self) -> str:
        """Either "bm25" or the name of an encoder."""
        ...

    @property
    def passages(self) -> int:
        """Passages in a prompt."""
        ...

    @property
    def chunk_words(self) -> int:
        """Words of a chunk."""
        ...

    @property
    def chunk_overlap(self) -> int:
        """Words that neighbouring chunks share."""
        ...


class Question(NamedTuple):
    """A question with its right answers, and the document that answers it, if that is known."""

    text: str
    answers: tuple[str, ...]
    document: str | None = None


def answer_prompt(question: str, passages: Sequence[RetrievedPassage]) -> str:
    """The prompt for an answer; without passages the question alone."""
    if not passages:
        return _WITHOUT.format(question=question)
    listed = "\n\n".join(f"[{number}] {item.document}: {item.text}" for number, item in enumerate(passages, start=1))
    return _WITH_PASSAGES.format(passages=listed, question=question)


def passages_of(prompt: str) -> str:
    """The passages in a prompt of `answer_prompt` as one text; "" if it has none."""
    before, _, _ = _WITH_PASSAGES.partition("{passages}")
    return prompt.removeprefix(before).rpartition("\n\nQuestion: ")[0] if prompt.startswith(before) else ""


class PassagePrompter:
    """Makes the prompt of a question with passages of a corpus.

    Args:
        index: index of the corpus.
        k: passages in a prompt.
    """

    def __init__(self, index: PassageIndex, k: int) -> None:
        self._index, self._k = index, k

    def __call__(self, question: str) -> RetrievedPrompt:
        """The prompt with the `k` best passages; without passages if none shares a word with the question."""
        found = self._index.search(question, self._k)
        passages = [RetrievedPassage(item.chunk.document, item.chunk.text, item.score) for item in found]
        return RetrievedPrompt(answer_prompt(question, passages), tuple(passages))


def open_prompter(settings: TaskSettings) -> PassagePrompter:
    """Read and index the corpus of a recipe.

    Raises:
        DataError: the corpus is missing, unreadable or without text.
    """
    return _open(cast("RagSettings", settings))[0]


def load(info: TaskInfo, settings: TaskSettings) -> TaskData:
    """Read the user's questions and retrieve passages for each of them.

    The splits are "train", "validation" and "closed_book", the validation questions without passages. The rows of
    `task.train` may also be conversations (see `read_chats`), which are trained on as they are.

    Raises:
        DataError: questions or corpus are missing, unreadable or without text.
    """
    file, validation_given = require_own_files(info, settings)
    share = validation_share(validation_given)
    prompter, notes = _open(cast("RagSettings", settings))
    source = file if share is not None else f"{file}, {validation_given}"
    if share is not None:
        questions = read_questions(Path(file))
        kept = ChatRows.of([_chat(question, question.text) for question in questions])
        train, validation, note = hold_out(kept, share, file)
        by_text = {question.text: question for question in questions}
        train_rows = _ask([by_text[text] for text in train.first], prompter)
        asked = [by_text[text] for text in dict.fromkeys(validation.first)]
        notes.append(note)
    else:
        train_rows = _train_rows(Path(file), prompter, notes)
        asked = read_questions(Path(str(validation_given)))
    splits = {"train": train_rows, **_evaluation_splits(asked, prompter, notes)}
    return make_task_data(info, settings, splits, source=source, notes=notes)


def load_evaluation(info: TaskInfo, settings: TaskSettings, data: str, label_names: tuple[str, ...] | None) -> TaskData:
    """Read the questions of one file and retrieve passages for each of them.

    Raises:
        DataError: as for `load`.
    """
    prompter, notes = _open(cast("RagSettings", settings))
    splits = _evaluation_splits(read_questions(Path(data)), prompter, notes)
    return make_task_data(info, settings, splits, source=data, notes=notes)


def read_questions(path: Path) -> list[Question]:
    """The rows of a file with the columns `question`, `answer` (text, or a list of texts) and optionally `document`.

    Raises:
        DataError: the file is unreadable, or a question or answer is missing or not text; all faults are listed.
    """
    names = ["question", "answer", *(["document"] if "document" in column_names(path) else [])]
    table = read_table(path, names)
    faults, questions = Faults(str(path)), []
    for index, (text, given) in enumerate(zip(table.columns["question"], table.columns["answer"], strict=True)):
        answers: list[Any] = given if isinstance(given, list) and given else [given]
        for column, value in (("question", text), *(("answer", answer) for answer in answers)):
            if not isinstance(value, str) or not value.strip():
                what = "no text" if value is None or isinstance(value, str) else f"{show(value)} is not text"
                faults.add(f"{table.place(index, column)}: {what}")
                break
        else:
            document = table.columns["document"][index] if "document" in names else None
            questions.append(Question(str(text), tuple(answers), None if document is None else str(document)))
    faults.raise_any()
    return questions


def _open(settings: RagSettings) -> tuple[PassagePrompter, list[str]]:
    corpus = settings.corpus
    if not corpus:
        raise DataError("task.corpus: missing; name the files or folders of your documents")
    documents, notes = read_documents([corpus] if isinstance(corpus, str) else corpus)
    chunks = cut_into_chunks(documents, settings.chunk_words, settings.chunk_overlap)
    return PassagePrompter(PassageIndex(chunks, settings.retriever), settings.passages), notes


def _train_rows(path: Path, prompter: PassagePrompter, notes: list[str]) -> ChatRows:
    if "question" in column_names(path):
        return _ask(read_questions(path), prompter)
    chats, more = read_chats(path)
    if not chats:
        raise DataError(f"{path}: holds no rows")
    notes += more
    return ChatRows.of(chats)


def _evaluation_splits(questions: Sequence[Question], prompter: PassagePrompter, notes: list[str]) -> dict[str, Any]:
    rows = _ask(questions, prompter)
    held = sum(
        any(contains_answer(passages_of(prompt), answer) for answer in question.answers)
        for question, prompt in zip(_one_an_answer(questions), rows.first, strict=True)
    )
    notes.append(f"validation: the retrieved passages contain the answer of {held:,} of {counted(len(rows), 'row')}")
    closed = [_chat(question, answer_prompt(question.text, [])) for question in _one_an_answer(questions)]
    return {"validation": rows, CLOSED_BOOK: ChatRows.of(closed)}


def _ask(questions: Sequence[Question], prompter: PassagePrompter) -> ChatRows:
    """One row an answer: the rows of one question have one prompt, whose answers are its references."""
    prompts = {question.text: prompter(question.text).text for question in questions}
    return ChatRows.of([_chat(question, prompts[question.text]) for question in _one_an_answer(questions)])


def _one_an_answer(questions: Sequence[Question]) -> list[Question]:
    return [question._replace(answers=(answer,)) for question in questions for answer in question.answers]


def _chat(question: Question, prompt: str) -> Chat:
    return (("user", prompt), ("assistant", question.answers[0]))
