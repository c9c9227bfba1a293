"""Read preference data: a chosen and a rejected answer to a prompt, as text or as messages (DPO, reward models)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kasatune.data.readers.conversations import (
    CONVERSATIONS,
    MESSAGES,
    Chat,
    after_system,
    alpaca_message,
    checked_chat,
    history_messages,
)
from kasatune.data.readers.faults import Faults, show
from kasatune.data.readers.tables import column_names, read_table
from kasatune.errors import DataError
from kasatune.wording import agree, counted

_ANSWERS = ("chosen", "rejected")
_PROMPTS = ("prompt", "instruction", "question", MESSAGES, CONVERSATIONS)
_FURTHER = ("system", "history")
_EMPTY = (None, "", "[]", [])


class AnswerPair(NamedTuple):
    """A row: two answers to the same messages.

    Attributes:
        prompt: the messages before the answers, as (role, text), the last one of the user.
        chosen: the better answer.
        rejected: the worse answer.
    """

    prompt: Chat
    chosen: str
    rejected: str


def read_pairs(path: Path) -> tuple[list[AnswerPair], list[str]]:
    """The pairs of a file, in a form that is recognized by its columns.

    The answers are in `chosen` and `rejected`: text, a message, or a list of messages, which may be the complete
    conversation. What they answer is in `prompt` (text or a list of messages), in `instruction` and optionally `input`,
    in `question`, or in `messages` or `conversations`; `system` and `history` come before it as in `read_chats`. If
    there is no such column, `chosen` and `rejected` are complete conversations that differ in their last message.

    Pairs of equal answers, from which nothing can be learned, are left out.

    Returns:
        The rows, and notes: the form, columns that are not read, rows that were left out.

    Raises:
        DataError: the file is unreadable (see `read_table`) or has other columns, or a row is no pair of answers to one
            prompt; all faults are listed.
    """
    names = column_names(path)
    columns = columns_of_pairs(names, str(path))
    table = read_table(path, columns)
    pairs, notes = pairs_of_rows(table.columns, str(path), table.place)
    return pairs, [form_of_pairs(names, columns, str(path)), *notes]


def columns_of_pairs(names: Sequence[str], source: str) -> list[str]:
    """Those of `names` that hold pairs of answers and what they answer.

    Raises:
        DataError: `chosen` or `rejected` is missing.
    """
    if not all(name in names for name in _ANSWERS):
        shown = ", ".join(map(repr, names[:20]))
        raise DataError(
            f"{source}: the columns are {shown}; rows of preferences have chosen, rejected, and prompt (or instruction,"
            " question, messages or conversations)"
        )
    prompt = next((name for name in _PROMPTS if name in names), None)
    optional = ["input"] if prompt == "instruction" and "input" in names else []
    further = [name for name in _FURTHER if name in names]
    return [*([prompt] if prompt else []), *optional, *_ANSWERS, *further]


def form_of_pairs(names: Sequence[str], columns: Sequence[str], source: str) -> str:
    """A note that says from which columns pairs are read, and which columns are not read."""
    unread = [name for name in names if name not in columns]
    note = f"{source}: pairs of answers are read from {', '.join(columns)}"
    return f"{note}; {', '.join(unread)} {agree(len(unread), 'is', 'are')} not read" if unread else note


def pairs_of_rows(
    columns: Mapping[str, Sequence[Any]], source: str, place: Callable[[int, str], str] | None = None
) -> tuple[list[AnswerPair], list[str]]:
    """The pairs in the columns of `columns_of_pairs`, and notes about rows that were left out.

    Args:
        columns: values by column name, all of the same length.
        source: where they were read from, for messages.
        place: describes the place of a value, given its row index and column.

    Raises:
        DataError: a row is no pair of answers to one prompt; all faults are listed.
    """
    where = place or (lambda index, column: f"row {index + 1}, column {column!r}")
    faults = Faults(source)
    pairs: list[AnswerPair] = []
    equal: list[int] = []
    for index in range(len(columns["chosen"])):
        row = {name: column[index] for name, column in columns.items()}
        pair = _pair(row, lambda column, index=index: where(index, column), faults)
        if pair is not None and pair.chosen == pair.rejected:
            equal.append(index)
        elif pair is not None:
            pairs.append(pair)
    faults.raise_any()
    if not equal:
        return pairs, []
    has, is_ = agree(len(equal), "has", "have"), agree(len(equal), "is", "are")
    rows = counted(len(columns["chosen"]), "row")
    note = f"{source}: {len(equal):,} of {rows} {has} equal answers and {is_} left out, first row {equal[0] + 1}"
    return pairs, [note]


def _pair(row: Mapping[str, Any], place: Callable[[str], str], faults: Faults) -> AnswerPair | None:
    before = faults.count
    prompt = _prompt(row, place, faults)
    chats: list[Chat] = []
    for column in _ANSWERS:
        messages = _messages(row[column], place(column), faults)
        if faults.count > before:
            return None
        if len(messages) == 1:
            messages = [*prompt, *messages]
            if not prompt:
                faults.add(f"{place(column)}: the row has no prompt; add a column prompt, or give the conversation")
                return None
        elif prompt and not _begins_with(messages, prompt):
            faults.add(f"{place(column)}: the conversation does not begin with the prompt of its row")
            return None
        elif not prompt:
            messages = after_system(row, messages, place, faults)
        chats.append(checked_chat(messages, place(column), faults))
        if faults.count > before:
            return None
    chosen, rejected = chats
    if chosen[:-1] != rejected[:-1]:
        faults.add(f"{place('rejected')}: the messages before the answer differ from those of chosen")
        return None
    return AnswerPair(chosen[:-1], chosen[-1][1], rejected[-1][1])


def _prompt(row: Mapping[str, Any], place: Callable[[str], str], faults: Faults) -> list[Any]:
    """The messages of the prompt column; empty if there is none, or if its value is missing."""
    column = next((name for name in _PROMPTS if name in row), None)
    if column is None or row[column] in _EMPTY:
        return []
    value = row[column]
    if isinstance(value, str):
        value = [{"role": "user", "content": alpaca_message(value, row.get("input"))}]
    elif not isinstance(value, (list, tuple)):
        faults.add(f"{place(column)}: {show(value)} is neither text nor a list of messages")
        return []
    return list(after_system(row, [*history_messages(row, place, faults), *value], place, faults))


def _messages(value: Any, place: str, faults: Faults) -> list[Any]:
    """The messages of an answer: text is one message of the assistant."""
    if isinstance(value, str) and value.strip():
        return [{"role": "assistant", "content": value}]
    if isinstance(value, Mapping):
        return [value]
    if isinstance(value, (list, tuple)) and value:
        return list(value)
    what = "the answer is missing" if value in _EMPTY or isinstance(value, str) else f"{show(value)} is no answer"
    faults.add(f"{place}: {what}; give text or messages")
    return []


def _begins_with(messages: Sequence[Any], prompt: Sequence[Any]) -> bool:
    """Whether a conversation begins with the messages of a prompt, whose text may be written with other keys."""
    return len(messages) > len(prompt) and all(
        _text(message) == _text(start) for message, start in zip(messages, prompt, strict=False)
    )


def _text(message: Any) -> Any:
    return message.get("content", message.get("value")) if isinstance(message, Mapping) else message
