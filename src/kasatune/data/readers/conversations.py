"""Read conversations: Alpaca rows (instruction, input, output) or chat messages, from a file or a table of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kasatune.data.readers.faults import Faults, show
from kasatune.data.readers.tables import column_names, read_table
from kasatune.errors import DataError
from kasatune.wording import agree, counted

Chat = tuple[tuple[str, str], ...]
"""Messages as (role, text): an optional "system" first, then "user" and "assistant" in turn, ending with an answer."""

MESSAGES = "messages"
_ALPACA = ("instruction", "output")
_ROLES = ("system", "user", "assistant")


def read_chats(path: Path) -> tuple[list[Chat], list[str]]:
    """The rows of a file: a column `messages`, or the columns `instruction`, `output` and optionally `input`.

    Alpaca rows with an empty output, of which the published data set has some, are left out.

    Returns:
        The rows, and notes about rows that were left out.

    Raises:
        DataError: the file is unreadable (see `read_table`) or has other columns, or a row is not a conversation that
            ends with an answer; all faults are listed.
    """
    columns = columns_of_chats(column_names(path), str(path))
    table = read_table(path, columns)
    return chats_of_rows(table.columns, str(path), table.place)


def columns_of_chats(names: Sequence[str], source: str) -> list[str]:
    """Those of `names` that hold conversations.

    Raises:
        DataError: the columns for a conversation are missing.
    """
    if MESSAGES in names:
        return [MESSAGES]
    if all(name in names for name in _ALPACA):
        return [name for name in ("instruction", "input", "output") if name in names]
    shown = ", ".join(map(repr, names[:20]))
    raise DataError(
        f"{source}: the columns are {shown}; instruction rows have messages, or instruction, output and maybe input"
    )


def chats_of_rows(columns: Mapping[str, Sequence[Any]], source: str, place: Any = None) -> tuple[list[Chat], list[str]]:
    """The conversations in the columns of `columns_of_chats`, and notes about rows that were left out.

    Args:
        columns: values by column name, all of the same length.
        source: where they were read from, for messages.
        place: describes the place of a value, given its row index and column.

    Raises:
        DataError: a row is not a conversation; all faults are listed.
    """
    place = place or (lambda index, column: f"row {index + 1}, column {column!r}")
    faults = Faults(source)
    if MESSAGES in columns:
        chats = [_chat(value, place(index, MESSAGES), faults) for index, value in enumerate(columns[MESSAGES])]
    else:
        chats = [_alpaca(columns, index, place, faults) for index in range(len(columns["instruction"]))]
    faults.raise_any()
    answered = [chat for chat in chats if chat]
    empty = len(chats) - len(answered)
    first = next((index for index, chat in enumerate(chats) if not chat), 0)
    notes = [
        f"{source}: {empty:,} of {counted(len(chats), 'row')} {agree(empty, 'has', 'have')} an empty output "
        f"and {agree(empty, 'is', 'are')} left out, first row {first + 1}"
    ]
    return answered, notes if empty else []


def alpaca_message(instruction: str, input_text: str | None) -> str:
    """The user message of an Alpaca row: the instruction and, after an empty line, its input."""
    return f"{instruction}\n\n{input_text}" if input_text and input_text.strip() else instruction


def _alpaca(columns: Mapping[str, Sequence[Any]], index: int, place: Any, faults: Faults) -> Chat:
    """The row; empty if its output is empty or it has a fault."""
    values = {name: column[index] for name, column in columns.items()}
    if isinstance(values["output"], str) and not values["output"].strip():
        return ()
    for name, value in values.items():
        required = name in _ALPACA
        if not (isinstance(value, str) and (value.strip() or not required)) and not (value is None and not required):
            what = "the text is missing" if value in (None, "") else f"{show(value)} is not text"
            faults.add(f"{place(index, name)}: {what}")
            return ()
    user = alpaca_message(values["instruction"], values.get("input"))
    return (("user", user), ("assistant", values["output"]))


def _chat(value: Any, place: str, faults: Faults) -> Chat:
    if not isinstance(value, (list, tuple)) or not value:
        faults.add(f'{place}: {show(value)} where a list is expected: [{{"role": "user", "content": "..."}}, ...]')
        return ()
    messages = []
    for number, message in enumerate(value, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        text = message.get("content") if isinstance(message, Mapping) else None
        if role not in _ROLES or not isinstance(text, str) or not text.strip():
            faults.add(f"{place}, message {number}: {show(message)}; a role of {', '.join(_ROLES)} and text are needed")
            return ()
        messages.append((role, text))
    turns = messages[1:] if messages[0][0] == "system" else messages
    expected = [("user", "assistant")[number % 2] for number in range(len(turns))]
    roles = [role for role, _ in turns]
    if roles != expected or len(turns) % 2 or not turns:
        faults.add(
            f"{place}: the roles are {', '.join(role for role, _ in messages)}; user and assistant must take"
            " turns, and the last message must be the assistant's"
        )
        return ()
    return tuple(messages)
