"""Models that the page has loaded to chat with, and the rows that two classifiers disagree on."""

from __future__ import annotations

import gc
import json
import queue
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kasatune.errors import InputError, KasatuneError
from kasatune.io.run_layout import PREDICTIONS
from kasatune.runs.directory import read_recipe
from kasatune.runs.metrics import read_metrics

if TYPE_CHECKING:
    from kasatune.adapter_tools.chat import ChatModel, Conversation

MOST_ROWS = 200


@dataclass
class LoadedModel:
    """The model that is loaded, with one conversation of the tuned model and one of its base.

    Attributes:
        path: of the run or adapter; "" if none is loaded.
        chat: the model.
        conversations: that of the tuned model, and that of the base.
    """

    path: str = ""
    chat: ChatModel | None = None
    conversations: list[Conversation] = field(default_factory=list)

    def load(self, root: Path, path: str) -> ChatModel:
        """Load a run or adapter to chat with, unless it is loaded."""
        if self.chat is None or self.path != path:
            from kasatune.adapter_tools.chat import open_chat

            self.unload()
            self.chat, self.path = open_chat(str(root / path)), path
            self.conversations = []
        return self.chat

    def unload(self) -> None:
        """Free the memory of the model."""
        self.path, self.chat, self.conversations = "", None, []
        gc.collect()

    def answer(
        self, message: str, system: str, options: dict[str, Any], stop: threading.Event
    ) -> Generator[tuple[int, str]]:
        """Answer a message with both models: yields (0 for the base or 1 for the tuned model, piece of its answer).

        Args:
            message: as the user wrote it.
            system: a system message; "" for none.
            options: of `Sampling`.
            stop: set to end the answers.
        """
        from kasatune.adapter_tools.chat import Conversation, ask_both
        from kasatune.evaluation.stream import Sampling

        assert self.chat is not None
        chat = self.chat
        if system.strip() and not chat.is_chat:
            raise InputError("system message: the model was not trained on conversations; leave it empty")
        sampling = Sampling(**{"max_new_tokens": chat.max_new_tokens, **options})
        if not self.conversations:
            self.conversations = [Conversation(chat, sampling) for _ in range(2)]
        tuned, untuned = self.conversations
        for conversation in self.conversations:
            conversation.sampling, conversation.system = sampling, system.strip() or None

        def write(which: int, piece: str) -> None:
            if stop.is_set():
                raise _StoppedError
            pieces.put((which, piece))

        pieces: queue.Queue[tuple[int, str]] = queue.Queue()
        yield from _in_thread(lambda: ask_both(tuned, untuned, message, write), pieces)


class _StoppedError(Exception):
    """The user stopped an answer."""


def _in_thread(work: Callable[[], Any], pieces: queue.Queue[tuple[int, str]]) -> Generator[tuple[int, str]]:
    """Yield the pieces that `work` puts into a queue while it runs in another thread, and raise its error."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except _StoppedError:
            pass
        except BaseException as error:
            errors.append(error)
        pieces.put((-1, ""))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while (item := pieces.get())[0] >= 0:
        yield item
    thread.join()
    if errors:
        raise errors[0]


@dataclass(frozen=True)
class Disagreement:
    """The rows of the validation split that one of two classifiers gets right and the other wrong.

    Attributes:
        head: names of the columns of `rows`.
        rows: row number, text if the data is still readable, label, prediction of either.
        counts: rows that only the first gets right, that only the second gets right, and all rows.
    """

    head: list[str]
    rows: list[list[str]]
    counts: tuple[int, int, int]


def disagreements(root: Path, first: str, second: str, inside: Callable[[Any], None]) -> Disagreement:
    """Compare the stored predictions of two classifiers.

    Args:
        root: folder that both are in.
        first: path of a run.
        second: path of another.
        inside: checks that a recipe reads only where it may.

    Raises:
        InputError: one is no classifier, or they were scored on different rows.
    """
    parts = [_predictions(root / path) for path in (first, second)]
    (left, left_metrics), (right, right_metrics) = parts
    names = left_metrics["label_names"]
    if left["labels"] != right["labels"] or names != right_metrics["label_names"]:
        raise InputError(f"{first} and {second} were scored on different rows; choose runs on the same data")
    texts = _texts(root / first, left_metrics, inside)
    rows, only = [], [0, 0]
    for number, (label, of_first, of_second) in enumerate(
        zip(left["labels"], left["predictions"], right["predictions"], strict=True)
    ):
        if (of_first == label) == (of_second == label):
            continue
        only[of_first != label] += 1
        if len(rows) < MOST_ROWS:
            text = texts[number] if number < len(texts) else ""
            rows.append([str(number + 1), text, *(str(names[value]) for value in (label, of_first, of_second))])
    return Disagreement(["row", "text", "label", first, second], rows, (only[0], only[1], len(left["labels"])))


def _predictions(run_dir: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    metrics = read_metrics(run_dir)
    if not metrics.get("label_names"):
        raise InputError(f"{run_dir.name} is not a classifier; choose runs that predict labels")
    try:
        content = json.loads((run_dir / PREDICTIONS).read_text(encoding="utf-8"))
        count = len(metrics["label_names"])
        lists = [content[key] for key in ("labels", "predictions")]
        sizes = {len(values) for values in lists}
        if len(sizes) != 1 or not all(type(value) is int and 0 <= value < count for part in lists for value in part):
            raise ValueError("wrong labels")
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise InputError(f"{run_dir.name}/{PREDICTIONS} cannot be read ({fault}); train again") from fault
    return content, metrics


def _texts(run_dir: Path, metrics: dict[str, Any], inside: Callable[[Any], None]) -> list[str]:
    """The texts of the scored rows; none if the data has changed or cannot be read any more."""
    from kasatune.data.tasks import load_task

    recipe = read_recipe(run_dir)
    try:
        inside(recipe)
        data = load_task(recipe.task)
    except KasatuneError:
        return []
    if data.sha256 != metrics.get("data_sha256"):
        return []
    return [" | ".join(texts) for texts in data.splits[metrics["split"]].texts()]
