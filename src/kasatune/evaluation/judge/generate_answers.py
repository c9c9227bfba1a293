"""What a run's model answers to questions, turn after turn, written down batch by batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kasatune.data.readers.conversations import Chat
from kasatune.evaluation.judge import Conversation, Question
from kasatune.evaluation.task_model import TaskModel, deterministic
from kasatune.io.atomic import write_text
from kasatune.io.library_noise import quiet
from kasatune.llm_client import AnswerCache
from kasatune.recipes.schema import Recipe

_WEIGHTS = ("adapter", "kasa", "checkpoint")

Progress = Callable[[int, int], None]


class Candidate:
    """A run's model that answers questions; it is loaded for the first question that has no answer yet.

    Args:
        run_dir: of a run on the task instruction.
        recipe: its own.
        ledger: of the answers; open.
    """

    def __init__(self, run_dir: Path, recipe: Recipe, ledger: AnswerCache) -> None:
        self._run_dir, self._recipe, self._ledger = run_dir, recipe, ledger
        self._weights = _fingerprint(run_dir)
        self._prepared: TaskModel | None = None

    def answer(self, questions: Sequence[Question], progress: Progress) -> dict[str, Conversation]:
        """The answers by question id, greedy or by the beams of the recipe's section `generation`.

        Every batch is on the disk before the next is begun; an answer that is there already is not written again.

        Args:
            questions: of one or two turns.
            progress: is told how many answers there are, of how many.
        """
        answers: dict[str, list[str]] = {one.id: [] for one in questions}
        total, done = sum(len(one.turns) for one in questions), 0
        with quiet(), deterministic():
            for turn in range(max(len(one.turns) for one in questions)):
                asked = [one for one in questions if len(one.turns) > turn]
                size = self._recipe.training.eval_batch_size
                for start in range(0, len(asked), size):
                    batch = asked[start : start + size]
                    texts = self._answers([_chat(one, answers[one.id]) for one in batch])
                    for one, text in zip(batch, texts, strict=True):
                        answers[one.id].append(text)
                    done += len(batch)
                    progress(done, total)
        return {name: Conversation(name, tuple(turns)) for name, turns in answers.items()}

    def _answers(self, chats: Sequence[Chat]) -> list[str]:
        keys = [self._key(chat) for chat in chats]
        missing = {key: chat for key, chat in zip(keys, chats, strict=True) if self._ledger.get(key) is None}
        if missing:
            if self._prepared is None:
                self._prepared = TaskModel.for_saved_run(self._recipe, "generation", None, self._run_dir)
            texts = self._prepared.answer(list(missing.values()))
            for (key, chat), text in zip(missing.items(), texts, strict=True):
                self._ledger.add(key, {"messages": [list(message) for message in chat], "answer": text})
        return [str((self._ledger.get(key) or {})["answer"]) for key in keys]

    def _key(self, chat: Chat) -> str:
        settings: Any = self._recipe.generation
        content = [self._weights, settings.model_dump(), self._recipe.task.max_length, chat]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_conversations(path: Path, name: str, answers: Sequence[Conversation]) -> None:
    """Answers in MT-Bench's form, one line a question."""
    lines = (
        json.dumps(
            {
                "question_id": int(one.question_id) if one.question_id.isdecimal() else one.question_id,
                "model_id": name,
                "choices": [{"index": 0, "turns": list(one.turns)}],
            },
            ensure_ascii=False,
        )
        for one in answers
    )
    write_text(path, "".join(f"{line}\n" for line in lines))


def _chat(question: Question, answers: Sequence[str]) -> Chat:
    """The conversation up to the next question."""
    messages = []
    for asked, answered in zip(question.turns, [*answers, None], strict=False):
        messages.append(("user", asked))
        if answered is not None:
            messages.append(("assistant", answered))
    return tuple(messages)


def _fingerprint(run_dir: Path) -> str:
    """SHA-256 over the run's weight files: another training of the same run gives other answers."""
    digest = hashlib.sha256()
    for folder in _WEIGHTS:
        for path in sorted((run_dir / folder).rglob("*.safetensors")):
            digest.update(os.fsencode(path.relative_to(run_dir)))
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
