"""Generate a run's answers to a judge's questions, turn by turn, and cache them on disk batch by batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kasatune.data.readers.conversations import Chat
from kasatune.evaluation.judge import Conversation, Question
from kasatune.evaluation.task_model import TaskModel, deterministic
from kasatune.io.atomic import write_text
from kasatune.io.library_noise import quiet
from kasatune.io.run_layout import WEIGHT_FOLDERS
from kasatune.llm_client import AnswerCache, ProgressCallback
from kasatune.recipes.schema import Recipe


class Candidate:
    """The model of a run as a candidate for a judge; it is loaded only when an answer is not cached.

    Args:
        run_dir: directory of a run on chat rows.
        recipe: recipe of the run.
        cache: open cache of the answers.
        base: where the base model is now, if not where the recipe says.
    """

    def __init__(self, run_dir: Path, recipe: Recipe, cache: AnswerCache, base: str | None = None) -> None:
        self._run_dir, self._recipe, self._cache, self._base = run_dir, recipe, cache, base
        self._weights = _weights_sha256(run_dir)
        self._task_model: TaskModel | None = None

    def answer(self, questions: Sequence[Question], progress: ProgressCallback) -> dict[str, Conversation]:
        """The answers by question id, generated with the recipe's section `generation`.

        Every batch is written to disk before the next one; cached answers are not generated again.

        Args:
            questions: with one or two turns.
            progress: called with the number of answers so far and their total.
        """
        answers: dict[str, list[str]] = {question.id: [] for question in questions}
        total, done = sum(len(question.turns) for question in questions), 0
        with quiet(), deterministic():
            for turn in range(max(len(question.turns) for question in questions)):
                pending = [question for question in questions if len(question.turns) > turn]
                size = self._recipe.training.eval_batch_size
                for start in range(0, len(pending), size):
                    batch = pending[start : start + size]
                    texts = self._answers([_chat(question, answers[question.id]) for question in batch])
                    for question, text in zip(batch, texts, strict=True):
                        answers[question.id].append(text)
                    done += len(batch)
                    progress(done, total)
        return {name: Conversation(name, tuple(turns)) for name, turns in answers.items()}

    def _answers(self, chats: Sequence[Chat]) -> list[str]:
        keys = [self._key(chat) for chat in chats]
        missing = {key: chat for key, chat in zip(keys, chats, strict=True) if self._cache.get(key) is None}
        if missing:
            if self._task_model is None:
                self._task_model = TaskModel.for_saved_run(self._recipe, None, self._run_dir, base=self._base)
            texts = self._task_model.answer(list(missing.values()))
            for (key, chat), text in zip(missing.items(), texts, strict=True):
                self._cache.add(key, {"messages": [list(message) for message in chat], "answer": text})
        return [str((self._cache.get(key) or {})["answer"]) for key in keys]

    def _key(self, chat: Chat) -> str:
        settings: Any = self._recipe.generation
        content = [self._weights, settings.model_dump(), self._recipe.task.max_length, chat]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_conversations(path: Path, name: str, answers: Sequence[Conversation]) -> None:
    """Write answers in MT-Bench's form, one line a question."""
    lines = (
        json.dumps(
            {
                "question_id": int(answer.question_id) if answer.question_id.isdecimal() else answer.question_id,
                "model_id": name,
                "choices": [{"index": 0, "turns": list(answer.turns)}],
            },
            ensure_ascii=False,
        )
        for answer in answers
    )
    write_text(path, "".join(f"{line}\n" for line in lines))


def _chat(question: Question, answers: Sequence[str]) -> Chat:
    """The conversation up to the next question."""
    messages = []
    for user_text, answer in zip(question.turns, [*answers, None], strict=False):
        messages.append(("user", user_text))
        if answer is not None:
            messages.append(("assistant", answer))
    return tuple(messages)


def _weights_sha256(run_dir: Path) -> str:
    """SHA-256 of the run's weight files; training the run again gives a new one, so cached answers do not apply."""
    digest = hashlib.sha256()
    for folder in WEIGHT_FOLDERS:
        for path in sorted((run_dir / folder).rglob("*.safetensors")):
            digest.update(os.fsencode(path.relative_to(run_dir)))
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
